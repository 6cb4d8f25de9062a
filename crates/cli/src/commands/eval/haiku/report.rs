//! What `mantissa eval haiku` prints.

use std::io::Write;

use anyhow::{Error, Result};
use mantissa::Model;
use mantissa::engine::sampling::SamplingOptions;
use mantissa::eval::haiku::Verdict;
use mantissa::numerics::PrecisionPolicy;
use serde_json::{Map, Value, json};

use super::{Answer, Answers};
use crate::output;
use crate::table::{self, Column};

/// Words whose answers are shown.
const SAMPLES: usize = 3;

/// Everything that was asked and answered.
pub struct Report<'a> {
    pub model: &'a Model,
    pub words: &'a [String],
    pub prompt: &'a str,
    pub outcomes: &'a [(PrecisionPolicy, Result<Answers>)],
}

impl Report<'_> {
    /// Policies that were carried out.
    fn answered(&self) -> impl Iterator<Item = (&PrecisionPolicy, &Answers)> {
        self.outcomes.iter().filter_map(|(policy, outcome)| Some((policy, outcome.as_ref().ok()?)))
    }

    /// Prints everything for people.
    pub fn print(&self) -> Result<()> {
        let (model, count) = (self.model.location(), self.words.len());
        writeln!(output::stdout(), "{model}, {:?}, {count} {}\n", self.prompt, plural(count, "word"))?;
        self.print_shares()?;
        for sample in samples(count) {
            self.print_sample(sample)?;
        }
        Ok(())
    }

    fn print_shares(&self) -> Result<()> {
        let mut columns = vec![Column::text("policy"), Column::number("words"), Column::number("pass")];
        columns.extend(Verdict::CHECKS.map(|name| Column::number(name.replace('_', " "))));
        columns.push(Column::number("tokens/s"));
        let row = |(policy, outcome): &(PrecisionPolicy, Result<Answers>)| {
            let mut row = vec![policy.to_string()];
            let Ok(answers) = outcome else {
                row.extend([String::new(), "refused".to_owned()]);
                return row;
            };
            row.extend([answers.answers.len().to_string(), format!("{:.1} %", answers.passing())]);
            let share = |index: usize| answers.share(|verdict| verdict.checks()[index]);
            row.extend((0..Verdict::CHECKS.len()).map(|check| format!("{:.1} %", share(check))));
            row.push(format!("{:.0}", answers.rate()));
            row
        };
        table::print(&columns, &self.outcomes.iter().map(row).collect::<Vec<_>>())?;
        for (policy, outcome) in self.outcomes {
            if let Err(error) = outcome {
                writeln!(output::stdout(), "\n{policy} is refused: {}", reason(error))?;
            }
        }
        Ok(())
    }

    /// The answers about one word; those that several policies share are printed once.
    fn print_sample(&self, index: usize) -> Result<()> {
        let mut texts: Vec<(&Answer, Vec<String>)> = Vec::new();
        for (policy, answers) in self.answered() {
            let answer = &answers.answers[index];
            match texts.iter_mut().find(|(other, _)| other.text == answer.text) {
                Some((_, policies)) => policies.push(policy.to_string()),
                None => texts.push((answer, vec![policy.to_string()])),
            }
        }
        let mut out = output::stdout();
        for (answer, policies) in texts {
            writeln!(out, "\n{}, {}: {}", self.words[index], policies.join(" "), answer.verdict)?;
            for line in answer.text.trim().split('\n') {
                writeln!(out, "  {}", printable(line))?;
            }
        }
        Ok(())
    }

    /// Everything for programs.
    pub fn json(&self, sampling: &SamplingOptions, max_tokens: usize) -> Value {
        let policies = self.outcomes.iter().map(|(policy, outcome)| match outcome {
            Ok(answers) => self.policy_json(policy, answers),
            Err(error) => json!({ "policy": policy.to_string(), "refused": reason(error) }),
        });
        json!({
            "model": self.model.location().to_string(),
            "prompt": self.prompt,
            "words": self.words.len(),
            "sampling": sampling,
            "max_tokens": max_tokens,
            "policies": policies.collect::<Vec<_>>(),
        })
    }

    fn policy_json(&self, policy: &PrecisionPolicy, answers: &Answers) -> Value {
        let shares: Map<String, Value> = Verdict::CHECKS
            .iter()
            .enumerate()
            .map(|(index, name)| {
                ((*name).to_owned(), json!(answers.share(|verdict| verdict.checks()[index])))
            })
            .collect();
        let all = self.words.iter().zip(&answers.answers).map(|(word, answer)| {
            json!({
                "word": word,
                "text": answer.text,
                "tokens": answer.tokens,
                "finish_reason": answer.finish_reason,
                "seed": answer.seed,
                "passes": answer.verdict.passes(),
                "verdict": answer.verdict,
            })
        });
        json!({
            "policy": policy.to_string(),
            "pass_percent": answers.passing(),
            "check_percent": shares,
            "tokens": answers.tokens(),
            "seconds": answers.seconds,
            "tokens_per_second": answers.rate(),
            "memory": { "weights": answers.memory.weights, "cache": answers.memory.cache },
            "answers": all.collect::<Vec<_>>(),
        })
    }
}

/// The places of a few words, spread over the list.
fn samples(words: usize) -> impl Iterator<Item = usize> {
    let count = SAMPLES.min(words);
    (0..count).map(move |sample| (2 * sample + 1) * words / (2 * count))
}

/// A line without what would upset a terminal.
fn printable(line: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    line.chars().map(escaped).collect()
}

fn reason(error: &Error) -> String {
    format!("{error:#}")
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_over_the_list() {
        let of = |words| samples(words).collect::<Vec<_>>();
        assert_eq!(of(200), [33, 100, 166]);
        assert_eq!(of(4), [0, 2, 3]);
        assert_eq!(of(3), [0, 1, 2]);
        assert_eq!(of(2), [0, 1]);
        assert_eq!(of(1), [0]);
    }

    #[test]
    fn escape_sequences_stay_text() {
        assert_eq!(printable("snow\u{1b}[31m é"), "snow\\u{1b}[31m é");
    }
}
