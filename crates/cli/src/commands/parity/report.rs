//! What `mantissa parity` prints.

use std::io::Write;

use anyhow::Result;
use mantissa::Model;
use mantissa::ops::conformance::shapes::Shapes;
use mantissa_lab::machine::Machine;
use mantissa_lab::parity::{Comparison, ContractCheck, REFERENCE, TokenSource};
use serde_json::{Value, json};

use super::ModelChecks;
use crate::output;
use crate::table::{self, Column};

/// Layers that are shown of a long model: its ends and where the error grows fastest, unless all are asked for.
const SHOWN: usize = 12;

/// Everything that was checked.
pub struct Report<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub shapes: &'a Shapes,
    pub kernels: &'a [ContractCheck],
    pub checks: Option<&'a ModelChecks>,
}

/// How much of the tables is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A line an op, and the layers that matter.
    Folded,
    /// Every contract and every layer.
    Full,
}

impl Report<'_> {
    pub fn name(&self) -> String {
        self.model.location().to_string()
    }

    pub fn comparisons(&self) -> &[Comparison] {
        self.checks.map_or(&[], |checks| &checks.comparisons)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let Shapes { hidden, intermediate, vocabulary, heads, context, .. } = self.shapes;
        let holding = |check: &&ContractCheck| check.holds();
        json!({
            "model": self.name(),
            "machine": self.machine,
            "shapes": {
                "hidden": hidden,
                "intermediate": intermediate,
                "vocabulary": vocabulary,
                "heads": { "query": heads.query, "key_value": heads.key_value, "dim": heads.dim },
                "context": context,
            },
            "kernels": self.kernels.iter().map(kernel_json).collect::<Vec<_>>(),
            "tokens_from": self.checks.map(|checks| checks.source),
            "comparisons": self.comparisons().iter().map(comparison_json).collect::<Vec<_>>(),
            "summary": {
                "contracts": self.kernels.len(),
                "contracts_that_hold": self.kernels.iter().filter(holding).count(),
                "comparisons": self.comparisons().len(),
                "comparisons_that_hold": self.comparisons().iter().filter(|one| one.holds()).count(),
            },
        })
    }

    /// Prints it for people.
    pub fn print(&self, detail: Detail) -> Result<()> {
        writeln!(output::stdout(), "{} on {}", self.name(), self.machine.describe())?;
        if !self.kernels.is_empty() {
            self.print_kernels(detail)?;
        }
        for comparison in self.comparisons() {
            self.print_comparison(comparison, detail)?;
        }
        self.print_summary()
    }

    fn print_kernels(&self, detail: Detail) -> Result<()> {
        let Shapes { hidden, intermediate, vocabulary, heads, .. } = self.shapes;
        writeln!(
            output::stdout(),
            "\nkernels against f64 at the shapes of the model: hidden {hidden}, intermediate {intermediate}, heads {} over \
             {} of {}, vocabulary {vocabulary} (large matrices in slices)\n",
            heads.query,
            heads.key_value,
            heads.dim,
        )?;
        match detail {
            Detail::Full => print_contracts(self.kernels)?,
            Detail::Folded => print_ops(self.kernels)?,
        }
        for check in self.kernels.iter().filter(|check| !check.holds()) {
            print_failure(check)?;
        }
        Ok(())
    }

    fn print_comparison(&self, comparison: &Comparison, detail: Detail) -> Result<()> {
        let Comparison { subject, against, tokens, points, logits, .. } = comparison;
        let source = match self.checks.map(|checks| checks.source) {
            Some(TokenSource::Text) => "tokens of the text",
            Some(TokenSource::Random) => "random tokens",
            Some(TokenSource::Passage) | None => "tokens of prose",
        };
        let mut out = output::stdout();
        writeln!(out, "\n{subject} against {against}, layer by layer over {tokens} {source}\n")?;
        drop(out);
        let fastest = comparison.fastest.as_ref();
        let row = |index: usize| {
            let point = &points[index];
            let grown =
                index.checked_sub(1).map(|before| point.relative_error / points[before].relative_error);
            let grown =
                grown.filter(|factor| factor.is_finite()).map_or(String::new(), |x| format!("x{x:.2}"));
            vec![
                point.name.clone(),
                error(point.relative_error),
                grown,
                error(point.max_error),
                ulps(point.max_ulps),
            ]
        };
        let shown = |index: &usize| {
            let ends = *index < SHOWN / 2 || index + SHOWN / 2 >= points.len();
            detail == Detail::Full || ends || fastest.is_some_and(|growth| growth.name == points[*index].name)
        };
        let mut rows: Vec<Vec<String>> = (0..points.len()).filter(shown).map(row).collect();
        let (relative, max) = (error(logits.relative_error), error(logits.max_error));
        rows.push(vec!["logits".to_owned(), relative, String::new(), max, String::new()]);
        let columns = ["behind", "relative error", "grown", "largest error", "largest, in ulp"];
        table::print(&columns_of(columns), &rows)?;
        if rows.len() <= points.len() {
            let left_out = points.len() + 1 - rows.len();
            writeln!(output::stdout(), "({left_out} layers in between are left out; --full shows them)")?;
        }
        print_findings(comparison)
    }

    fn print_summary(&self) -> Result<()> {
        let mut parts = Vec::new();
        if !self.kernels.is_empty() {
            let holding = self.kernels.iter().filter(|check| check.holds()).count();
            parts.push(format!("{holding} of {} contracts hold", self.kernels.len()));
        }
        if !self.comparisons().is_empty() {
            let holding = self.comparisons().iter().filter(|one| one.holds()).count();
            parts.push(format!("{holding} of {} comparisons of the model hold", self.comparisons().len()));
        }
        writeln!(output::stdout(), "\n{}", parts.join(", "))?;
        Ok(())
    }
}

/// What is to be said below the table of a comparison.
fn print_findings(comparison: &Comparison) -> Result<()> {
    let Comparison { against, tokens, logits, .. } = comparison;
    let mut out = output::stdout();
    writeln!(out)?;
    if let Some(growth) = &comparison.fastest {
        writeln!(out, "the error grows fastest at {} (x{:.2})", growth.name, growth.factor)?;
    }
    if let (Some(mean), Some(largest), Some(same)) =
        (logits.divergence, logits.max_divergence, logits.same_top)
    {
        writeln!(
            out,
            "KL divergence {mean:.2e} nats a token, {largest:.2e} at most; the same most probable token at {same} of \
             {tokens}"
        )?;
    }
    if let Some(step) = &comparison.first_non_finite {
        writeln!(out, "not finite from {step} on: choose a policy with a wider range, such as bf16 or f32")?;
    }
    if let Some(alone) = comparison.formats_alone {
        writeln!(
            out,
            "the formats of this policy alone, in f64 but rounded where the contracts round, lead to {}",
            error(alone)
        )?;
    }
    match comparison.figure {
        Some(figure) => {
            let word = if comparison.holds() { "holds" } else { "DOES NOT HOLD" };
            writeln!(out, "relative error of the logits at most {figure:.0e}: {word}")?;
        }
        None if against == REFERENCE => {
            writeln!(
                out,
                "the logits are held to no figure: a cache of 8 bits a number alone takes more than 1e-2"
            )?;
        }
        None => {}
    }
    Ok(())
}

fn kernel_json(check: &ContractCheck) -> Value {
    let mut value = json!(check);
    value["holds"] = json!(check.holds());
    value
}

fn comparison_json(comparison: &Comparison) -> Value {
    let mut value = json!(comparison);
    value["holds"] = json!(comparison.holds());
    value
}

/// The first column is words, all others are numbers.
fn columns_of<const N: usize>(headings: [&str; N]) -> Vec<Column> {
    let column = |(index, heading): (usize, &str)| match index {
        0 => Column::text(heading),
        _ => Column::number(heading),
    };
    headings.into_iter().enumerate().map(column).collect()
}

/// A line for each op: the worst of its contracts.
fn print_ops(kernels: &[ContractCheck]) -> Result<()> {
    let rows: Vec<Vec<String>> = kernels
        .chunk_by(|left, right| left.op == right.op)
        .map(|checks| {
            let worst = |of: fn(&ContractCheck) -> Option<f64>| checks.iter().filter_map(of).reduce(f64::max);
            let holding = checks.iter().filter(|check| check.holds()).count();
            vec![
                checks[0].op.clone(),
                format!("{holding} of {}", checks.len()),
                checks.iter().map(|check| check.cases).sum::<usize>().to_string(),
                table::count(checks.iter().map(|check| check.numbers as u64).sum()),
                worst(|check| check.relative_error).map_or(String::new(), error),
                held_to(checks),
                worst(|check| Some(check.max_ulps)).map_or(String::new(), ulps),
                worst(|check| Some(check.bound_used)).map_or(String::new(), share),
            ]
        })
        .collect();
    let headings = [
        "op",
        "contracts hold",
        "cases",
        "numbers",
        "relative error",
        "held to",
        "largest, in ulp",
        "of the bound",
    ];
    table::print(&columns_of(headings), &rows)
}

/// The figure that some of an op's contracts are held to, and the largest error of these.
fn held_to(checks: &[ContractCheck]) -> String {
    let held = checks.iter().filter_map(|check| Some((check.figure?, check.relative_error?)));
    let worst = held.reduce(|worst, next| if next.1 > worst.1 { next } else { worst });
    worst.map_or(String::new(), |(figure, reached)| format!("{} <= {figure:.0e}", error(reached)))
}

/// A line for each contract.
fn print_contracts(kernels: &[ContractCheck]) -> Result<()> {
    let rows: Vec<Vec<String>> = kernels
        .iter()
        .map(|check| {
            vec![
                format!("{} {}", check.op, check.contract),
                check.cases.to_string(),
                check.relative_error.map_or(String::new(), error),
                check.figure.map_or(String::new(), |figure| format!("{figure:.0e}")),
                ulps(check.max_ulps),
                share(check.bound_used),
                if check.holds() { "holds" } else { "DOES NOT HOLD" }.to_owned(),
            ]
        })
        .collect();
    let headings =
        ["op and contract", "cases", "relative error", "held to", "largest, in ulp", "of the bound", ""];
    table::print(&columns_of(headings), &rows)
}

/// The cases of a contract that do not hold, with the first number that is wrong.
fn print_failure(check: &ContractCheck) -> Result<()> {
    let mut out = output::stdout();
    writeln!(out, "\n{} {} does not hold", check.op, check.contract)?;
    for failure in &check.failures {
        writeln!(out, "  at {}:\n    {}", failure.shape, failure.problem)?;
    }
    if let (Some(figure), Some(reached)) = (check.figure, check.relative_error)
        && reached > figure
    {
        writeln!(out, "  relative error {}, and at most {figure:.0e} is allowed", error(reached))?;
    }
    Ok(())
}

fn error(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

fn ulps(value: f64) -> String {
    if value < 1e4 { format!("{value:.1}") } else { format!("{value:.1e}") }
}

fn share(value: f64) -> String {
    if value > 10.0 { "beyond".to_owned() } else { format!("{:.0} %", 100.0 * value) }
}
