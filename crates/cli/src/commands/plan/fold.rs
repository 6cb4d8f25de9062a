//! Layers that do not differ, shown once.

use std::ops::Range;

use super::Row;

/// One line of the table: a step, or the same step of several layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// `layers.0-23.qkv` where it stands for several.
    pub name: String,
    /// Steps that it stands for.
    pub times: usize,
    /// The first of them.
    pub row: Row,
}

impl Folded {
    /// A step on its own.
    pub fn single(row: Row) -> Folded {
        Folded { name: row.name.clone(), times: 1, row }
    }
}

/// Layer and rest of a step's name, where it belongs to a layer: `layers.3.qkv`.
fn parts(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// Folds consecutive layers whose steps are the same.
pub fn fold(rows: Vec<Row>) -> Vec<Folded> {
    let mut folded = Vec::new();
    let mut start = 0;
    while start < rows.len() {
        let first = layer(&rows, start);
        let mut end = first.end;
        let mut times = 1;
        while end < rows.len() && same(&rows[first.clone()], &rows[layer(&rows, end)]) {
            end = layer(&rows, end).end;
            times += 1;
        }
        folded.extend(rows[first].iter().map(|row| Folded {
            name: name(row, times),
            times,
            row: row.clone(),
        }));
        start = end;
    }
    folded
}

/// The steps from `start` on that belong to one layer, or the one that belongs to none.
fn layer(rows: &[Row], start: usize) -> Range<usize> {
    let number = |row: &Row| parts(&row.name).map(|(layer, _)| layer);
    let Some(layer) = number(&rows[start]) else { return start..start + 1 };
    let length = rows[start..].iter().take_while(|row| number(row) == Some(layer)).count();
    start..start + length
}

/// Whether two layers differ in nothing but their number.
fn same(left: &[Row], right: &[Row]) -> bool {
    let equal = |(left, right): (&Row, &Row)| match (parts(&left.name), parts(&right.name)) {
        (Some((_, rest)), Some((_, other))) => {
            rest == other && *left == Row { name: left.name.clone(), ..right.clone() }
        }
        _ => false,
    };
    left.len() == right.len() && left.iter().zip(right).all(equal)
}

fn name(row: &Row, times: usize) -> String {
    match parts(&row.name) {
        Some((layer, rest)) if times > 1 => format!("layers.{layer}-{}.{rest}", layer + times - 1),
        _ => row.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, shape: &str) -> Row {
        Row {
            name: name.to_owned(),
            family: "matmul",
            contract: String::new(),
            kernel: String::new(),
            why: String::new(),
            shape: shape.to_owned(),
            cost: Default::default(),
        }
    }

    #[test]
    fn equal_layers_fold_and_others_do_not() {
        let rows = vec![
            row("embedding", "a"),
            row("layers.0.qkv", "a"),
            row("layers.0.ffn", "b"),
            row("layers.1.qkv", "a"),
            row("layers.1.ffn", "b"),
            row("layers.2.qkv", "a"),
            row("layers.2.ffn", "windowed"),
            row("logits", "a"),
        ];
        let folded = fold(rows);
        let names: Vec<(&str, usize)> = folded.iter().map(|step| (step.name.as_str(), step.times)).collect();
        assert_eq!(
            names,
            [
                ("embedding", 1),
                ("layers.0-1.qkv", 2),
                ("layers.0-1.ffn", 2),
                ("layers.2.qkv", 1),
                ("layers.2.ffn", 1),
                ("logits", 1)
            ]
        );
    }

    #[test]
    fn steps_outside_layers_never_fold() {
        let folded = fold(vec![row("a", "x"), row("a", "x")]);
        assert_eq!(folded.len(), 2);
    }
}
