//! What `mantissa inspect` prints.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use mantissa::model::config::ModelConfig;
use mantissa::model::rope::RopeScaling;
use mantissa::model::template::TemplateError;
use mantissa::numerics::PrecisionPolicy;
use mantissa::ops::{BackendInfo, Program};
use mantissa::{Error, Model};
use serde_json::{Value, json};

use super::losses::Losses;
use super::memory::Memory;
use crate::output;
use crate::table::{self, Column};

/// Everything that is known.
pub struct Report<'a> {
    pub model: &'a Model,
    pub program: &'a Program,
    pub policies: &'a [PrecisionPolicy],
    /// Of each policy.
    pub memory: &'a [Memory],
    /// Where the memory is.
    pub info: &'a BackendInfo,
    pub losses: &'a Losses,
}

impl Report<'_> {
    /// Tensors of the checkpoint by stored type: how many, and bytes.
    fn by_dtype(&self) -> BTreeMap<&'static str, (usize, u64)> {
        let mut types: BTreeMap<&'static str, (usize, u64)> = BTreeMap::new();
        for tensor in self.model.checkpoint().tensors() {
            let (count, bytes) = types.entry(tensor.dtype).or_default();
            *count += 1;
            *bytes += tensor.bytes as u64;
        }
        types
    }

    /// File names with their lengths in bytes.
    fn files(&self) -> Vec<(String, u64)> {
        let checkpoint = self.model.checkpoint();
        let name = |path: &std::path::Path| {
            path.file_name()
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        };
        checkpoint.files().iter().map(|file| (name(file.path()), file.bytes().len() as u64)).collect()
    }

    /// Prints everything for people.
    pub fn print(&self) -> Result<()> {
        self.print_model()?;
        self.print_tensors()?;
        self.print_memory()?;
        self.print_losses()
    }

    fn print_model(&self) -> Result<()> {
        let config = self.model.config();
        let tokenizer = match self.model.tokenizer() {
            Ok(Some(tokenizer)) => format!("{}, {} tokens", tokenizer.kind(), tokenizer.vocab_size()),
            Ok(None) => "none: give --ids".to_owned(),
            Err(error) => format!("not usable: {error}"),
        };
        let template = match self.model.chat_template() {
            Ok(_) => "yes".to_owned(),
            Err(Error::Template(TemplateError::Missing { .. })) => "no".to_owned(),
            Err(error) => format!("not usable: {error}"),
        };
        let files = self.files();
        let bytes: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        let entries = [
            ("model", self.model.location().to_string()),
            ("architecture", config.architecture.to_string()),
            (
                "parameters",
                format!("{} ({})", self.program.parameters(), table::count(self.program.parameters() as u64)),
            ),
            ("sizes", sizes(config)),
            ("attention", attention(config)),
            ("context", format!("{} tokens", config.max_position_embeddings)),
            ("rope", rope(config)),
            ("tokenizer", tokenizer),
            ("chat template", template),
            ("files", format!("{} with {}", files.len(), table::bytes(bytes))),
        ];
        let mut out = output::stdout();
        for (name, value) in entries {
            writeln!(out, "{name:14} {value}")?;
        }
        for (name, bytes) in files {
            writeln!(out, "{:14}   {name}, {}", "", table::bytes(bytes))?;
        }
        Ok(())
    }

    fn print_tensors(&self) -> Result<()> {
        heading("Tensors")?;
        let row = |(dtype, (count, bytes)): (&str, (usize, u64))| {
            vec![dtype.to_owned(), count.to_string(), table::bytes(bytes)]
        };
        let rows: Vec<Vec<String>> = self.by_dtype().into_iter().map(row).collect();
        table::print(&[Column::text("type"), Column::number("tensors"), Column::number("bytes")], &rows)
    }

    fn print_memory(&self) -> Result<()> {
        let of = match self.info.threads {
            Some(_) => {
                "Memory of each policy: the cache at several contexts, and with the weights".to_owned()
            }
            None => format!(
                "Memory of each policy on {} ({}): the cache at several contexts, and with weights, values and scratch",
                self.info.name, self.info.device
            ),
        };
        heading(&of)?;
        let contexts = self.memory.first().map_or(&[][..], |memory| &memory.contexts);
        let mut columns =
            vec![Column::text("policy"), Column::number("weights"), Column::number("cache/token")];
        columns.extend(contexts.iter().map(|at| Column::number(format!("at {}", at.context))));
        let row = |(policy, memory): (&PrecisionPolicy, &Memory)| {
            let mut row =
                vec![policy.to_string(), table::bytes(memory.weights), table::bytes(memory.per_token)];
            row.extend(
                memory
                    .contexts
                    .iter()
                    .map(|at| format!("{} / {}", table::bytes(at.cache), table::bytes(at.total))),
            );
            row
        };
        table::print(&columns, &self.policies.iter().zip(self.memory).map(row).collect::<Vec<_>>())
    }

    fn print_losses(&self) -> Result<()> {
        heading("Conversions of the weights at load, and what they lose")?;
        let mut rows = Vec::new();
        for policy in self.policies {
            let to = policy.weights();
            let before = rows.len();
            rows.extend(self.losses.into(to).map(|(from, conversion)| {
                vec![
                    policy.to_string(),
                    format!("{} -> {to}", from.to_ascii_lowercase()),
                    conversion.tensors.to_string(),
                    table::bytes(conversion.bytes),
                    conversion.loss(),
                ]
            }));
            if rows.len() == before {
                let none = ["none".to_owned(), "0".to_owned(), table::bytes(0), "nothing".to_owned()];
                rows.push(std::iter::once(policy.to_string()).chain(none).collect());
            }
        }
        let columns = [
            Column::text("policy"),
            Column::text("conversion"),
            Column::number("tensors"),
            Column::number("bytes"),
            Column::text("lost"),
        ];
        table::print(&columns, &rows)?;
        for (dtype, tensors) in &self.losses.unreadable {
            writeln!(
                output::stdout(),
                "{tensors} tensors are {dtype}, which no kernel reads: the model cannot be run"
            )?;
        }
        Ok(())
    }

    /// Everything for programs.
    pub fn json(&self) -> Value {
        let config = self.model.config();
        let files = self.files().into_iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes }));
        let tensors = self
            .by_dtype()
            .into_iter()
            .map(|(dtype, (count, bytes))| json!({ "dtype": dtype, "tensors": count, "bytes": bytes }));
        let policies = self.policies.iter().zip(self.memory).map(|(policy, memory)| {
            let to = policy.weights();
            let conversions = self.losses.into(to).map(|(from, conversion)| conversion.json(from, to));
            json!({
                "policy": policy.to_string(),
                "memory": memory.json(),
                "conversions": conversions.collect::<Vec<_>>(),
            })
        });
        json!({
            "path": self.model.location().to_string(),
            "architecture": config.architecture.name(),
            "parameters": self.program.parameters(),
            "layers": config.layers,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "tied_embeddings": config.tie_word_embeddings,
            "context": config.max_position_embeddings,
            "sliding_windows": config.windows,
            "rope": {
                "kind": rope_kind(&config.rope.scaling),
                "theta": config.rope.theta,
                "dimensions": config.rope.rotary_dim,
            },
            "tokenizer": self.tokenizer_json(),
            "chat_template": self.model.chat_template().is_ok(),
            "files": files.collect::<Vec<_>>(),
            "tensors": tensors.collect::<Vec<_>>(),
            "unreadable": self.losses.unreadable,
            "device": self.info.device,
            "policies": policies.collect::<Vec<_>>(),
        })
    }

    fn tokenizer_json(&self) -> Value {
        match self.model.tokenizer() {
            Ok(Some(tokenizer)) => json!({ "kind": tokenizer.kind(), "vocabulary": tokenizer.vocab_size() }),
            Ok(None) => Value::Null,
            Err(error) => json!({ "error": error.to_string() }),
        }
    }
}

fn heading(text: &str) -> Result<()> {
    let style = anstyle::Style::new().bold();
    writeln!(output::stdout(), "\n{style}{text}{style:#}")?;
    Ok(())
}

fn sizes(config: &ModelConfig) -> String {
    let tied = if config.tie_word_embeddings { "tied" } else { "separate" };
    format!(
        "{} layers, hidden {}, feed-forward {}, vocabulary {} ({tied} output matrix)",
        config.layers, config.hidden_size, config.intermediate_size, config.vocab_size
    )
}

fn attention(config: &ModelConfig) -> String {
    let mut text = format!(
        "{} query heads, {} key and value heads, {} values each",
        config.heads, config.kv_heads, config.head_dim
    );
    let windowed: Vec<usize> = config.windows.iter().copied().flatten().collect();
    if let (Some(least), Some(most)) = (windowed.iter().min(), windowed.iter().max()) {
        let window = if least == most { least.to_string() } else { format!("{least} to {most}") };
        text += &format!("; a window of {window} tokens in {} of {} layers", windowed.len(), config.layers);
    }
    text
}

fn rope_kind(scaling: &RopeScaling) -> &'static str {
    match scaling {
        RopeScaling::Default => "default",
        RopeScaling::Linear { .. } => "linear",
        RopeScaling::Llama3(_) => "llama3",
        RopeScaling::Yarn(_) => "yarn",
        RopeScaling::LongRope(_) => "longrope",
        RopeScaling::FrequencyFactors(_) => "frequency factors",
    }
}

fn rope(config: &ModelConfig) -> String {
    let rope = &config.rope;
    let scaling = match &rope.scaling {
        RopeScaling::Default | RopeScaling::FrequencyFactors(_) => String::new(),
        RopeScaling::Linear { factor } => format!(", factor {factor}"),
        RopeScaling::Llama3(scaling) => {
            format!(", factor {} beyond {} tokens", scaling.factor, scaling.original_context)
        }
        RopeScaling::Yarn(scaling) => {
            format!(", factor {} beyond {} tokens", scaling.factor, scaling.original_context)
        }
        RopeScaling::LongRope(scaling) => {
            format!(", factor {} beyond {} tokens", scaling.factor, scaling.original_context)
        }
    };
    format!(
        "{}, theta {}, {} of {} dimensions{scaling}",
        rope_kind(&rope.scaling),
        rope.theta,
        rope.rotary_dim,
        config.head_dim
    )
}
