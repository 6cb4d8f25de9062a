//! The support matrix of a backend, as data and as Markdown, from its contracts.

use std::fmt::Write as _;

use mantissa_numerics::Format;
use mantissa_numerics::contract::{
    CacheFormat, Compute, ContractQuery, Family, OpContract, RoundingPoint, Subnormals, look_up,
};
use serde::Serialize;

use crate::backend::Backend;

/// Cache formats that can be asked for: one scale format each for the 8-bit one with stored scales, and the narrow
/// ones without.
const CACHES: [CacheFormat; 8] = [
    CacheFormat::plain(Format::F32),
    CacheFormat::plain(Format::F16),
    CacheFormat::plain(Format::Bf16),
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) },
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) },
    CacheFormat::plain(Format::F8E4M3),
    CacheFormat::plain(Format::F8E5M2),
    CacheFormat::plain(Format::F4E2M1),
];

/// Every combination of family, weights, activations and cache that can be named; sums are f32 in all of them.
pub fn universe() -> Vec<ContractQuery> {
    let mut queries = Vec::new();
    for family in Family::ALL {
        let weights: Vec<Option<Format>> =
            if family.has_weights() { Format::ALL.into_iter().map(Some).collect() } else { vec![None] };
        let caches: Vec<Option<CacheFormat>> =
            if family.has_cache() { CACHES.into_iter().map(Some).collect() } else { vec![None] };
        for &weights in &weights {
            for activations in Format::ALL {
                for &cache in &caches {
                    queries.push(ContractQuery {
                        family,
                        weights,
                        activations,
                        cache,
                        accumulate: Format::F32,
                    });
                }
            }
        }
    }
    queries
}

/// What a backend does with one combination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Support {
    /// It has a kernel.
    Supported {
        /// Storage of the result.
        output: Format,
        /// How products are formed.
        compute: String,
        /// Order of the sums.
        order: String,
        /// Where values are rounded.
        rounding: Vec<&'static str>,
        /// Treatment of subnormals in products.
        subnormals: &'static str,
    },
    /// It has none.
    Unsupported {
        /// Supported combinations of the same family that differ least.
        nearest: Vec<String>,
    },
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MatrixRow {
    /// The backend.
    pub backend: String,
    /// The family.
    pub family: &'static str,
    /// Storage of the weights, where there are some.
    pub weights: Option<Format>,
    /// Storage of the activations.
    pub activations: Format,
    /// Storage of the cache and its scales, where there is one.
    pub cache: Option<String>,
    /// Format of the sums.
    pub accumulate: Format,
    /// What the backend does with it.
    #[serde(flatten)]
    pub support: Support,
}

/// Every combination of [`universe`] with what the backend says.
pub fn support_matrix(backend: &dyn Backend) -> Vec<MatrixRow> {
    matrix_of(&backend.info().name, backend.contracts())
}

/// Every combination of [`universe`] with what the contracts of the backend called `name` say.
pub fn matrix_of(name: &str, contracts: &[OpContract]) -> Vec<MatrixRow> {
    let row = |query: ContractQuery| {
        let support = match look_up(contracts, &query, name, "matrix") {
            Ok(contract) => supported(contract),
            Err(refusal) => {
                Support::Unsupported { nearest: refusal.nearest.iter().map(ToString::to_string).collect() }
            }
        };
        MatrixRow {
            backend: name.to_owned(),
            family: query.family.name(),
            weights: query.weights,
            activations: query.activations,
            cache: query.cache.map(|cache| cache.to_string()),
            accumulate: query.accumulate,
            support,
        }
    };
    universe().into_iter().map(row).collect()
}

fn supported(contract: &OpContract) -> Support {
    let compute = match contract.compute {
        Compute::F32Fma => "f32 fma".to_owned(),
        Compute::Bf16Pairs => "bf16 pairs".to_owned(),
        Compute::MatrixUnits { depth } => format!("matrix units k{depth}"),
        Compute::F64 => "f64".to_owned(),
        Compute::None => "copy".to_owned(),
    };
    let order = contract.order.to_string();
    let rounding = contract.rounding.iter().map(|point| match point {
        RoundingPoint::Output => "output",
        RoundingPoint::CacheWrite => "cache write",
        RoundingPoint::CacheScale => "cache scale",
        RoundingPoint::Intermediate => "intermediate",
        RoundingPoint::SoftmaxWeights => "softmax weights (two parts)",
    });
    let subnormals = match contract.subnormals {
        Subnormals::Kept => "kept",
        Subnormals::FlushedInProducts => "flushed in products",
    };
    Support::Supported { output: contract.output, compute, order, rounding: rounding.collect(), subnormals }
}

/// The matrix as Markdown, one table per backend and family.
///
/// Lines are weight formats and columns activation formats; families with a cache have a column for each cache
/// format and a line for each pair of weights and activations. A dash means that the combination is refused when a
/// model is prepared. Formats that would have nothing but dashes are named below their table instead.
pub fn render_markdown(rows: &[MatrixRow]) -> String {
    let mut families: Vec<Vec<&MatrixRow>> = Vec::new();
    for row in rows {
        let belongs = |members: &&mut Vec<&MatrixRow>| {
            members.first().is_some_and(|first| first.backend == row.backend && first.family == row.family)
        };
        match families.iter_mut().find(belongs) {
            Some(members) => members.push(row),
            None => families.push(vec![row]),
        }
    }
    families.iter().map(|members| family_section(members)).collect::<Vec<_>>().join("\n")
}

fn is_supported(row: &MatrixRow) -> bool {
    matches!(row.support, Support::Supported { .. })
}

/// The distinct values of `name`, in order of appearance.
fn distinct<'a>(
    rows: impl Iterator<Item = &'a MatrixRow>,
    name: impl Fn(&MatrixRow) -> Option<String>,
) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in rows.filter_map(name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn line_of(row: &MatrixRow) -> Option<String> {
    Some(match (row.weights, &row.cache) {
        (Some(weights), Some(_)) => format!("{weights} x {}", row.activations),
        (Some(weights), None) => weights.to_string(),
        (None, Some(_)) => row.activations.to_string(),
        (None, None) => "no weights".to_owned(),
    })
}

fn column_of(row: &MatrixRow) -> Option<String> {
    Some(row.cache.clone().unwrap_or_else(|| row.activations.to_string()))
}

fn cell(support: &Support) -> String {
    let Support::Supported { compute, order, subnormals, .. } = support else { return "-".to_owned() };
    let mut text = compute.clone();
    if order != "elementwise" {
        let _ = write!(text, ", {order}");
    }
    if *subnormals != "kept" {
        text.push_str(", ftz");
    }
    text
}

fn family_section(members: &[&MatrixRow]) -> String {
    let Some(first) = members.first() else { return String::new() };
    let supported = || members.iter().copied().filter(|row| is_supported(row));
    let lines = distinct(supported(), line_of);
    let columns = distinct(supported(), column_of);
    let corner = match (first.weights, &first.cache) {
        (Some(_), Some(_)) => "weights x activations \\\\ cache",
        (Some(_), None) => "weights \\\\ activations",
        (None, Some(_)) => "activations \\\\ cache",
        (None, None) => "activations",
    };
    // Writing to a string cannot fail.
    let mut text = format!("### {} on {}\n\n", first.family, first.backend);
    if lines.is_empty() {
        text.push_str("No kernel.\n");
        return text;
    }
    let _ = writeln!(text, "| {corner} | {} |\n|---|{}", columns.join(" | "), "---|".repeat(columns.len()));
    for line in &lines {
        let cells = columns.iter().map(|column| {
            let of_cell = |row: &&&MatrixRow| {
                line_of(row).as_ref() == Some(line) && column_of(row).as_ref() == Some(column)
            };
            members.iter().find(of_cell).map_or_else(|| "-".to_owned(), |row| cell(&row.support))
        });
        let _ = writeln!(text, "| {line} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    let _ = writeln!(text, "\nRounded at: {}.{}", rounding_text(members), refused_text(members));
    text
}

/// The rounding points that occur, with the storage of the result where it does not follow from the activations.
fn rounding_text(members: &[&MatrixRow]) -> String {
    let lists = distinct(members.iter().copied(), |row| match &row.support {
        Support::Supported { rounding, output, .. } => {
            let output = if *output == row.activations { "" } else { " (f32)" };
            Some(format!("{}{output}", rounding.join(", ")))
        }
        Support::Unsupported { .. } => None,
    });
    lists.join("; or ")
}

fn refused_text(members: &[&MatrixRow]) -> String {
    type Axis = (&'static str, fn(&MatrixRow) -> Option<String>);
    const AXES: [Axis; 3] = [
        ("weights", |row| row.weights.map(|format| format.to_string())),
        ("activations", |row| Some(row.activations.to_string())),
        ("kv_cache", |row| row.cache.clone()),
    ];
    let mut parts = Vec::new();
    for (axis, name) in AXES {
        let supported = distinct(members.iter().copied().filter(|row| is_supported(row)), name);
        let mut refused = distinct(members.iter().copied(), name);
        refused.retain(|format| !supported.contains(format));
        if !refused.is_empty() {
            parts.push(format!("{axis} {}", refused.join(", ")));
        }
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" Refused in every combination: {}.", parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{ReferenceBackend, Rounding};

    #[test]
    fn every_combination_is_in_the_matrix_once() {
        let backend = ReferenceBackend::new(Rounding::AsContract);
        let rows = support_matrix(&backend);
        let queries = universe();
        assert_eq!(rows.len(), queries.len());
        for (index, query) in queries.iter().enumerate() {
            assert!(!queries[..index].contains(query));
        }
        assert_eq!(rows.iter().filter(|row| is_supported(row)).count(), backend.contracts().len());
        for row in rows.iter().filter(|row| !is_supported(row)) {
            assert!(matches!(&row.support, Support::Unsupported { nearest } if !nearest.is_empty()));
        }
    }

    #[test]
    fn markdown_shows_kernels_and_names_what_has_none() {
        let text = render_markdown(&support_matrix(&ReferenceBackend::new(Rounding::AsContract)));
        let start = text.find("### matmul").expect("a section");
        let section = text[start..].split("### ").nth(1).expect("a section");
        assert_eq!(
            section,
            "matmul on reference\n\n\
             | weights \\\\ activations | f32 | f16 | bf16 |\n\
             |---|---|---|---|\n\
             | f32 | f64, ascending | f64, ascending | f64, ascending |\n\
             | f16 | f64, ascending | f64, ascending | f64, ascending |\n\
             | bf16 | f64, ascending | f64, ascending | f64, ascending |\n\n\
             Rounded at: output. Refused in every combination: weights f8e4m3, f8e5m2, f4e2m1; activations f8e4m3, \
             f8e5m2, f4e2m1.\n\n"
        );
        assert!(
            text.contains(
                "| weights x activations \\\\ cache | f32 | f16 | bf16 | f8e4m3+f16 | f8e4m3+f32 |"
            )
        );
    }
}
