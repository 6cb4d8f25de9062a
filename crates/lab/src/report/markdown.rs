//! The document.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::operations::{Operation, PhaseTime};
use super::tables::{NONE, bytes, count, rate, seconds, table, tokens_per_second};
use super::targets::Verdict;
use super::{AtContext, Found, Report, UnderPolicy, pictures};

/// Operations of each policy that are shown.
const OPERATIONS: usize = 6;

impl Report {
    /// The document, with links to those of the pictures that there are.
    pub(super) fn markdown(&self, there: &[&str]) -> String {
        let picture = |name: &str, says: &str| {
            if there.contains(&name) { format!("![{says}]({name})\n\n") } else { String::new() }
        };
        let mut text = self.heading();
        text += &self.targets();
        text += &self.machine();
        text += &self.speed();
        text += &picture(pictures::DECODE, "Tokens in a second, one at a time, by context and policy");
        text += &picture(pictures::PREFILL, "Tokens of a prompt in a second, by context and policy");
        text += &self.memory();
        text += &picture(pictures::MEMORY, "Bytes held, by context and policy");
        text += &self.moved();
        text += &self.errors();
        text += &picture(pictures::ERROR, "Relative error of the residual stream by layer and policy");
        text += &self.accuracy();
        text += &self.operations();
        text += &picture(pictures::OPERATION, "Time of each operation in one token, by policy");
        text += &picture(pictures::ROOFLINE, "Operations by their intensity, under the machine's ceilings");
        text += &self.reproduction();
        text.trim_end().to_owned() + "\n"
    }

    fn heading(&self) -> String {
        let machine = &self.made.machine;
        format!(
            "# {} on {}\n\nWhat number formats cost and what they do, side by side: speed, memory and accuracy of one model \
             on one machine. Written by `mantissa report` on {}. `report.json` and `measurements.csv` beside this document \
             hold the numbers.\n\n",
            self.model, machine.device, self.made.date
        )
    }

    fn targets(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .targets
            .iter()
            .map(|target| {
                let verdict = match target.verdict {
                    Verdict::Met => "met".to_owned(),
                    verdict => format!("**{}**", verdict.name()),
                };
                vec![target.what.clone(), target.wanted.clone(), target.found.clone(), verdict]
            })
            .collect();
        if rows.is_empty() {
            return "## Targets\n\nNone: they hold f16, bf16 and memory-efficient against f32, and f32 or all of the others \
                    are not part of this report.\n\n"
                .to_owned();
        }
        format!("## Targets\n\n{}\n", table(&["what", "promised", "found", "verdict"], &rows))
    }

    fn machine(&self) -> String {
        let machine = &self.made.machine;
        let mut rows = vec![
            vec!["device".to_owned(), format!("{} ({})", machine.device, machine.backend)],
            vec!["features".to_owned(), machine.features.clone()],
        ];
        rows.extend(machine.driver.iter().map(|driver| vec!["driver".to_owned(), driver.clone()]));
        rows.extend(machine.threads.map(|threads| vec!["threads".to_owned(), threads.to_string()]));
        for ceiling in &self.ceilings {
            let of = |value| rate(value, ceiling.unit);
            let spread = &ceiling.rate;
            rows.push(vec![
                format!("ceiling: {}", ceiling.name),
                format!("{} ({} to {})", of(spread.median), of(spread.min), of(spread.max)),
            ]);
        }
        format!("## Machine\n\n{}\n", table(&["", ""], &rows))
    }

    fn speed(&self) -> String {
        let headings = [
            "policy",
            "#context",
            "#first token",
            "#prefill tokens/s",
            "#of its ceiling",
            "#decode tokens/s",
            "#of its ceiling",
        ];
        let row = |policy: &UnderPolicy, at: &AtContext| {
            let mut row = vec![format!("`{}`", policy.name), count(at.context)];
            match &at.speed {
                Found::Missing(_) => row.extend([NONE; 5].map(str::to_owned)),
                Found::Measured(speed) => row.extend([
                    seconds(speed.first_token.median),
                    tokens_per_second(&speed.prefill),
                    percent(speed.prefill_share),
                    tokens_per_second(&speed.decode),
                    percent(speed.decode_share),
                ]),
            }
            row
        };
        let mut text = format!(
            "## Speed\n\nOf one sequence. The first token is what a user waits for after a prompt that fills the context; decode is \
             one token at a time behind it. Medians, with the smallest and the largest value where there are several. \
             Prefill is held against the peak rate of its products, decode against the longer of the times for reading weights \
             and cache and for the products.\n\n{}\n",
            self.at_contexts(&headings, row)
        );
        text += &self.reasons(|at| at.speed.reason());
        text
    }

    fn memory(&self) -> String {
        let headings = [
            "policy",
            "#context",
            "#weights",
            "#cache",
            "#scratch",
            "#together",
            "#peak of device",
            "#peak of process",
        ];
        let row = |policy: &UnderPolicy, at: &AtContext| {
            let mut row = vec![format!("`{}`", policy.name), count(at.context)];
            let shown = |bytes_held: Option<u64>| bytes_held.map_or_else(|| NONE.to_owned(), bytes);
            match &at.memory {
                Found::Missing(_) => row.extend([NONE; 4].map(str::to_owned)),
                Found::Measured(memory) => row.extend([
                    bytes(memory.weights),
                    bytes(memory.cache),
                    shown(memory.scratch),
                    bytes(memory.total),
                ]),
            }
            let speed = at.speed.value();
            row.push(shown(speed.and_then(|speed| speed.device_peak)));
            row.push(shown(speed.and_then(|speed| speed.process_peak)));
            row
        };
        let mut text = format!(
            "## Memory\n\nWhat the model holds with a cache of so many tokens. The peaks were measured while it ran, of the device \
             by its driver and of this process by the system; the process also holds the pages of the checkpoint that it has \
             read.\n\n{}\n",
            self.at_contexts(&headings, row)
        );
        text += &self.reasons(|at| at.memory.reason());
        text
    }

    fn moved(&self) -> String {
        let row = |policy: &UnderPolicy, at: &AtContext| {
            let mut row = vec![format!("`{}`", policy.name), count(at.context)];
            match &at.bytes {
                Found::Missing(_) => row.extend([NONE; 3].map(str::to_owned)),
                Found::Measured(moved) => {
                    row.extend([moved.weights, moved.cache, moved.total].map(bytes));
                }
            }
            row
        };
        format!(
            "## Bytes moved for a token\n\nWhat one further token has to read and write at the least, each byte counted once.\n\n{}\n",
            self.at_contexts(&["policy", "#context", "#weights", "#cache", "#together"], row)
        )
    }

    fn at_contexts(
        &self,
        headings: &[&str],
        row: impl Fn(&UnderPolicy, &AtContext) -> Vec<String>,
    ) -> String {
        let rows: Vec<Vec<String>> = self
            .policies
            .iter()
            .flat_map(|policy| policy.contexts.iter().filter(|at| at.is_known()).map(|at| row(policy, at)))
            .collect();
        table(headings, &rows)
    }

    /// Why there are no values at contexts, each reason once.
    fn reasons<'a>(&'a self, of: impl Fn(&'a AtContext) -> Option<&'a str>) -> String {
        let mut reasons: BTreeMap<(usize, &str), Vec<&str>> = BTreeMap::new();
        for policy in &self.policies {
            for at in &policy.contexts {
                if let Some(reason) = of(at) {
                    reasons.entry((at.context, reason)).or_default().push(&policy.name);
                }
            }
        }
        let lines = reasons.into_iter().map(|((context, reason), policies)| {
            format!("* Context {}, {}: {reason}.\n", count(context), policies.join(", "))
        });
        let lines: String = lines.collect();
        if lines.is_empty() { lines } else { format!("Not measured:\n\n{lines}\n") }
    }

    fn errors(&self) -> String {
        let mut text = "## Error\n\n".to_owned();
        let row = |policy: &UnderPolicy| {
            let found = policy.error.value()?;
            let logits = &found.logits;
            let shown = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
            Some(vec![
                format!("`{}`", policy.name),
                format!("{:.1e}", logits.relative_error),
                shown(logits.divergence.map(|divergence| format!("{divergence:.1e}"))),
                shown(logits.same_top.map(|same| format!("{same} of {}", found.tokens))),
                shown(found.points.last().map(|last| format!("{:.1e}", last.relative_error))),
                shown(
                    found
                        .fastest
                        .as_ref()
                        .map(|growth| format!("{} ({:.1} times)", growth.name, growth.factor)),
                ),
                found.first_non_finite.clone().unwrap_or_else(|| "none".to_owned()),
            ])
        };
        let rows: Vec<Vec<String>> = self.policies.iter().filter_map(row).collect();
        if !rows.is_empty() {
            let headings = [
                "policy",
                "#error of the logits",
                "#mean KL",
                "#same top token",
                "#error behind the last layer",
                "grows most in",
                "first step not finite",
            ];
            let _ = writeln!(
                text,
                "Against the f64 reference, which computes from the same weights in the policy's format and rounds nothing else: \
                 the norm of the difference over that of the truth. `mantissa parity` tells more.\n\n{}",
                table(&headings, &rows)
            );
        }
        text + &self.missing("error", |policy| policy.error.reason())
    }

    fn accuracy(&self) -> String {
        let mut text = "## Accuracy\n\n".to_owned();
        if self.policies.iter().any(|policy| policy.predicted.value().is_some()) {
            text += &self.predictions();
        }
        text += &self.missing("perplexity", |policy| policy.predicted.reason());
        if self.policies.iter().any(|policy| policy.haiku.value().is_some()) {
            text += &self.haiku();
        }
        text += &self.missing("haiku", |policy| policy.haiku.reason());
        text
    }

    fn predictions(&self) -> String {
        let row = |policy: &UnderPolicy| {
            let mut row = vec![format!("`{}`", policy.name)];
            let Some(found) = policy.predicted.value() else {
                row.extend([NONE; 5].map(str::to_owned));
                return row;
            };
            row.push(with_error(found.perplexity, found.perplexity_error));
            match &found.against {
                None => row.extend(["the reference", NONE, NONE, NONE].map(str::to_owned)),
                Some(against) => row.extend([
                    with_error(against.difference, against.difference_error),
                    format!("{:.1e}", against.kl_mean),
                    format!("{:.1e}", against.kl_p99),
                    format!("{:.2} %", 100.0 * against.same_top),
                ]),
            }
            row
        };
        let rows: Vec<Vec<String>> = self.policies.iter().map(row).collect();
        let tokens = self.policies.iter().find_map(|policy| Some(policy.predicted.value()?.tokens));
        let headings =
            ["policy", "#perplexity", "#difference to f32", "#mean KL", "#99 % KL", "#same top token"];
        format!(
            "{} tokens of *{}* predicted, {} windows of it at most; KL divergence from f32 in nats. Errors are one standard error; \
             that of a difference is much smaller than that of either perplexity, because both predict the same \
             tokens.\n\n{}\n",
            count(tokens.unwrap_or(0)),
            self.text.name,
            self.extent.windows,
            table(&headings, &rows)
        )
    }

    fn haiku(&self) -> String {
        let row = |policy: &UnderPolicy| {
            let mut row = vec![format!("`{}`", policy.name)];
            match policy.haiku.value() {
                None => row.extend([NONE; 3].map(str::to_owned)),
                Some(haiku) => {
                    row.push(format!("{} of {}", haiku.passing, haiku.words));
                    let lines: Vec<&str> = haiku.answer.trim().lines().map(str::trim).collect();
                    row.push(lines.join(" / "));
                    row.push(if haiku.passes { "yes" } else { "no" }.to_owned());
                }
            }
            row
        };
        let rows: Vec<Vec<String>> = self.policies.iter().map(row).collect();
        let word = self.policies.iter().find_map(|policy| Some(policy.haiku.value()?.word.clone()));
        let heading = format!("about \"{}\"", word.unwrap_or_default());
        format!(
            "The model is asked for a haiku about a word. One passes that is whole text of three lines of 5, 7 and 5 syllables, has \
             the word in it and repeats nothing.\n\n{}\n",
            table(&["policy", "#pass", &heading, "passes"], &rows)
        )
    }

    /// Why there is no value, each reason once.
    fn missing<'a>(&'a self, what: &str, of: impl Fn(&'a UnderPolicy) -> Option<&'a str>) -> String {
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for policy in &self.policies {
            if let Some(reason) = of(policy) {
                reasons.entry(reason).or_default().push(&policy.name);
            }
        }
        let lines = reasons.into_iter().map(|(reason, policies)| {
            let all = policies.len() == self.policies.len();
            let whose = if all { "any policy".to_owned() } else { policies.join(", ") };
            format!("No {what} under {whose}: {reason}.\n\n")
        });
        lines.collect()
    }

    fn operations(&self) -> String {
        let mut text = "## Where the time goes\n\n".to_owned();
        let known = self.policies.iter().find_map(|policy| policy.operations.value());
        if let Some(operations) = known {
            let _ = writeln!(
                text,
                "Operations of all layers together, each kernel timed by itself: a prompt of {} tokens, and one token of {} behind \
                 it. Kernels that run as one launch take longer one by one, and the clock takes its time too: shares are of \
                 that sum, and the row below it says how long everything takes as it runs. `mantissa profile` tells more.\n",
                count(operations.prompt),
                operations.generate
            );
        }
        for policy in &self.policies {
            let Some(operations) = policy.operations.value() else { continue };
            let _ = writeln!(text, "### `{}`\n", policy.name);
            let rows = [("prefill", &operations.prefill), ("decode", &operations.decode)];
            let rows: Vec<Vec<String>> = rows
                .into_iter()
                .flat_map(|(name, phase)| {
                    let operations = phase.operations.iter().take(OPERATIONS);
                    operations
                        .map(move |operation| operation_row(name, operation))
                        .chain(whole_rows(name, phase))
                })
                .collect();
            let headings = ["phase", "operation", "#time", "#share", "limit", "#of it", "kernel"];
            text += &table(&headings, &rows);
            text.push('\n');
        }
        text += &self.missing("profile", |policy| policy.operations.reason());
        text
    }

    fn reproduction(&self) -> String {
        let Self { made, checkpoint, extent, .. } = self;
        let build = &made.machine.build;
        let mut text = format!(
            "## How to repeat it\n\n```sh\n{}\n```\n\nMantissa {}, commit {}. Prompts timed {} times at most, within {:.0} s for one context under one policy; \
             {} tokens in each window of decoding.\n\n",
            made.command, build.version, build.commit, extent.repetitions, extent.budget, extent.generate
        );
        let _ = writeln!(
            text,
            "The model: {}, {} layers, {} parameters, made for {} tokens, stored in {}.\n",
            checkpoint.architecture,
            checkpoint.layers,
            count(usize::try_from(checkpoint.parameters).unwrap_or(usize::MAX)),
            count(checkpoint.longest),
            checkpoint.dtypes.join(", ")
        );
        let files: Vec<Vec<String>> = checkpoint
            .files
            .iter()
            .map(|file| vec![file.name.clone(), bytes(file.bytes), format!("`{}`", file.sha256)])
            .collect();
        let _ = writeln!(text, "{}", table(&["file", "#size", "SHA-256"], &files));
        let fields: Vec<&str> =
            self.policies.first().map(|policy| policy.fields.keys().copied().collect()).unwrap_or_default();
        let headings: Vec<&str> = std::iter::once("policy").chain(fields.iter().copied()).collect();
        let rows: Vec<Vec<String>> = self
            .policies
            .iter()
            .map(|policy| {
                let name = std::iter::once(format!("`{}`", policy.name));
                name.chain(policy.fields.values().cloned()).collect()
            })
            .collect();
        text + &table(&headings, &rows)
    }
}

fn operation_row(phase: &str, operation: &Operation) -> Vec<String> {
    let shown = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
    vec![
        phase.to_owned(),
        operation.name.clone(),
        seconds(operation.seconds),
        percent(operation.share),
        shown(operation.limit.map(str::to_owned)),
        shown(operation.reached.map(percent)),
        format!("`{}`", operation.kernel),
    ]
}

/// All kernels, and everything as it runs.
fn whole_rows(name: &str, phase: &PhaseTime) -> [Vec<String>; 2] {
    let row = |what: String, time: f64| {
        let mut row = vec![name.to_owned(), what, seconds(time), percent(time / phase.traced)];
        row.extend([NONE; 3].map(str::to_owned));
        row
    };
    let clock = seconds(phase.clock);
    [
        row(format!("*all, kernel by kernel*, {clock} of it for the clock"), phase.traced),
        row("*all, as it runs*".to_owned(), phase.untraced),
    ]
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn with_error(value: f64, error: Option<f64>) -> String {
    match error {
        Some(error) => format!("{value:.3} \u{b1} {error:.3}"),
        None => format!("{value:.3}"),
    }
}
