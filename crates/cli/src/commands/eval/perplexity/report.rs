//! What `mantissa eval perplexity` prints.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use mantissa::Model;
use mantissa::engine::evaluation::{Estimate, WindowRule};
use mantissa::eval::{Against, Predictions, Track};
use mantissa::numerics::policy::Field;
use mantissa::ops::{MemoryUse, Plan};
use serde_json::{Map, Value, json};

use crate::output;
use crate::table::{self, Column};

/// Everything that was measured.
pub struct Report<'a> {
    pub model: &'a Model,
    pub policy: Under,
    pub reference: Option<Under>,
    pub windows: WindowRule,
    /// Each text with what was found over it.
    pub texts: &'a [(PathBuf, Predictions)],
}

/// How one policy was carried out.
pub struct Under {
    pub plan: Plan,
    pub memory: MemoryUse,
}

impl Report<'_> {
    /// All texts together.
    fn total(&self) -> Predictions {
        let mut total = Predictions::default();
        self.texts.iter().for_each(|(_, found)| total.append(found));
        total
    }

    /// The texts, and all together where there are several.
    fn rows(&self) -> Vec<(String, Predictions)> {
        let each = self.texts.iter().map(|(file, found)| (file.display().to_string(), found.clone()));
        let all = (self.texts.len() > 1).then(|| ("all".to_owned(), self.total()));
        each.chain(all).collect()
    }

    /// Prints everything for people.
    pub fn print(&self) -> Result<()> {
        let plan = &self.policy.plan;
        let context = self.windows.context;
        let rule = match self.windows.stride {
            None => "the second half of each predicted".to_owned(),
            Some(stride) => format!("one every {stride}, its last {stride} predicted"),
        };
        let (device, features) = (&plan.backend.device, &plan.backend.features);
        let threads = plan.backend.threads.unwrap_or(1);
        let model = self.model.location();
        writeln!(output::stdout(), "{model} on {device}, {features}, {threads} threads")?;
        writeln!(output::stdout(), "windows of {context} tokens, {rule}\n")?;
        self.print_perplexity()?;
        if let Some(reference) = &self.reference {
            writeln!(output::stdout(), "\n{} against {}, KL in nats", plan.policy, reference.plan.policy)?;
            self.print_against()?;
        }
        writeln!(output::stdout())?;
        self.print_memory()
    }

    fn print_perplexity(&self) -> Result<()> {
        let columns = [
            Column::text("text"),
            Column::text("policy"),
            Column::number("windows"),
            Column::number("predicted"),
            Column::number("perplexity"),
            Column::number("nats/token"),
            Column::number("nats/character"),
            Column::number("tokens/s"),
        ];
        let cells = |name: &str, under: &Under, found: &Predictions, track: &Track| {
            vec![
                name.to_owned(),
                under.plan.policy.to_string(),
                found.windows.to_string(),
                found.count().to_string(),
                with_error(track.perplexity(), 4),
                with_error(track.nats_per_token(), 5),
                shown(found.nats_per_character(track), |nats| format!("{nats:.5}")),
                shown(track.rate(), |rate| format!("{rate:.0}")),
            ]
        };
        let mut rows = Vec::new();
        for (name, found) in self.rows() {
            rows.push(cells(&name, &self.policy, &found, &found.policy));
            if let (Some(under), Some(against)) = (&self.reference, &found.against) {
                rows.push(cells(&name, under, &found, &against.reference));
            }
        }
        table::print(&columns, &rows)
    }

    fn print_against(&self) -> Result<()> {
        let columns = [
            Column::text("text"),
            Column::number("difference"),
            Column::number("ratio"),
            Column::number("mean KL"),
            Column::number("median KL"),
            Column::number("99 % KL"),
            Column::number("largest KL"),
            Column::number("same top token"),
        ];
        let nats = |value: f64| format!("{value:.2e}");
        let cells = |(name, found): (String, Predictions)| {
            let against = found.against.as_ref();
            let divergence = against.and_then(Against::divergence);
            let top = against.and_then(Against::same_top);
            vec![
                name,
                with_error(found.difference(), 4),
                with_error(found.log_ratio().map(Estimate::exp), 6),
                shown(divergence, |divergence| {
                    let error = divergence.mean.error.map(|error| format!(" ± {}", nats(error)));
                    nats(divergence.mean.value) + &error.unwrap_or_default()
                }),
                shown(divergence, |divergence| nats(divergence.median)),
                shown(divergence, |divergence| nats(divergence.p99)),
                shown(divergence, |divergence| nats(divergence.max)),
                shown(top, |top| format!("{:.2} %", 100.0 * top.value)),
            ]
        };
        table::print(&columns, &self.rows().into_iter().map(cells).collect::<Vec<_>>())
    }

    fn print_memory(&self) -> Result<()> {
        let columns = [
            Column::text("policy"),
            Column::number("weights"),
            Column::number("cache per token"),
            Column::number("cache"),
            Column::number("scratch"),
        ];
        let cells = |under: &Under| {
            vec![
                under.plan.policy.to_string(),
                table::bytes(under.memory.weights),
                format!("{} B", under.cache_per_token()),
                table::bytes(under.memory.cache),
                table::bytes(under.memory.scratch),
            ]
        };
        let all = std::iter::once(&self.policy).chain(&self.reference);
        table::print(&columns, &all.map(cells).collect::<Vec<_>>())
    }

    /// Everything for programs.
    pub fn json(&self) -> Value {
        let backend = &self.policy.plan.backend;
        let texts = self.texts.iter().map(|(file, found)| {
            let mut text = predictions(found);
            text.insert("file".to_owned(), json!(file.display().to_string()));
            text
        });
        json!({
            "model": self.model.location().to_string(),
            "device": backend.device,
            "isa": backend.features,
            "threads": backend.threads,
            "windows": {
                "context": self.windows.context,
                "stride": self.windows.stride,
                "limit": self.windows.limit,
            },
            "policy": self.policy.json(),
            "against": self.reference.as_ref().map(Under::json),
            "texts": texts.collect::<Vec<_>>(),
            "total": predictions(&self.total()),
        })
    }
}

impl Under {
    /// Bytes of keys, values and scales of a token in all layers.
    fn cache_per_token(&self) -> u64 {
        self.plan.memory(1).cache
    }

    fn json(&self) -> Value {
        let policy = self.plan.policy;
        let mut full: Map<String, Value> =
            Field::ALL.into_iter().map(|field| (field.to_string(), json!(policy.get(field)))).collect();
        full.insert("name".to_owned(), json!(policy.to_string()));
        // The steps of a family differ in shape, hardly ever in contract.
        let mut contracts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for step in &self.plan.steps {
            let known = contracts.entry(step.op.family().to_string()).or_default();
            let contract = step.contract.to_string();
            if !known.contains(&contract) {
                known.push(contract);
            }
        }
        json!({
            "policy": full,
            "contracts": contracts,
            "memory": {
                "weights": self.memory.weights,
                "cache": self.memory.cache,
                "cache_per_token": self.cache_per_token(),
                "scratch": self.memory.scratch,
            },
        })
    }
}

fn predictions(found: &Predictions) -> Map<String, Value> {
    let against = found.against.as_ref().map(|against| {
        let mut against_json = track(found, &against.reference);
        let divergence = against.divergence().map(|divergence| {
            json!({
                "mean": estimate(Some(divergence.mean)),
                "median": divergence.median,
                "p99": divergence.p99,
                "max": divergence.max,
            })
        });
        against_json.extend([
            ("difference".to_owned(), estimate(found.difference())),
            ("log_ratio".to_owned(), estimate(found.log_ratio())),
            ("ratio".to_owned(), estimate(found.log_ratio().map(Estimate::exp))),
            ("kl_divergence".to_owned(), json!(divergence)),
            ("same_top".to_owned(), estimate(against.same_top())),
        ]);
        against_json
    });
    let mut all = Map::new();
    all.extend([
        ("tokens".to_owned(), json!(found.tokens)),
        ("windows".to_owned(), json!(found.windows)),
        ("predicted".to_owned(), json!(found.count())),
        ("characters".to_owned(), json!(found.characters)),
    ]);
    all.extend(track(found, &found.policy));
    all.insert("against".to_owned(), json!(against));
    all
}

fn track(found: &Predictions, track: &Track) -> Map<String, Value> {
    [
        ("perplexity", estimate(track.perplexity())),
        ("nats_per_token", estimate(track.nats_per_token())),
        ("nats_per_character", json!(found.nats_per_character(track))),
        ("tokens_per_second", json!(track.rate())),
        ("seconds", json!(track.seconds)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

fn estimate(estimate: Option<Estimate>) -> Value {
    estimate.map_or(Value::Null, |Estimate { value, error }| json!({ "value": value, "error": error }))
}

fn with_error(estimate: Option<Estimate>, digits: usize) -> String {
    shown(estimate, |Estimate { value, error }| match error {
        Some(error) => format!("{value:.digits$} ± {error:.digits$}"),
        None => format!("{value:.digits$}"),
    })
}

fn shown<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(String::new, show)
}
