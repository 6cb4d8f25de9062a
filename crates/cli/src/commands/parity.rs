//! `mantissa parity`: how far computed numbers lie from the truth.

mod csv;
mod report;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use mantissa::model::arch;
use mantissa::numerics::PrecisionPolicy;
use mantissa::numerics::contract::Family;
use mantissa::ops::conformance::shapes::Shapes;
use mantissa::{Device, Model, Options};
use mantissa_lab::machine::Machine;
use mantissa_lab::parity::{
    self, Comparison, ContractCheck, FamilyChecks, Recording, Subject, TokenSource, check_families, record,
    record_formats, record_reference,
};

use crate::args::at_least_one;
use crate::commands::tokenize::read_text;
use crate::context::{self, Context};
use crate::measuring::{self, Measuring};
use crate::model::ModelArgs;
use crate::output;
use report::{Detail, Report};

/// Arguments of `mantissa parity`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mantissa parity                                        every kernel, and the built-in model, against f64
  mantissa parity ./qwen --policy bf16                   only what this policy uses
  mantissa parity ./qwen --only kernels --op matmul,attention --full
  mantissa parity ./qwen --only model --tokens 64 --plot plots
  mantissa parity ./qwen --policy f16 --against f32      two policies, layer by layer
  mantissa parity ./qwen --device cuda:0 --against-device cpu --with-reference

Kernels are run at the shapes of the model, in every contract of the device or those of the policies given, and held against
a reference in f64 within the bounds that follow from the contract; products of f16 also within 1e-3, and attention within
1e-2. The model is run over a few tokens and compared behind every layer; its logits may differ by 1e-2. What does not hold
is named, and the command fails. docs/measuring.md says what each number means.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Check only one of the two; both if not given, or the model alone where two are compared
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Check only the kernels of these ops, named as mantissa dtypes names them
    #[arg(long, value_name = "OP,...", value_delimiter = ',', value_parser = family)]
    op: Vec<Family>,

    /// Tokens that the model is run over
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_one)]
    tokens: NonZeroUsize,

    /// Take them from the start of this text, - for standard input; from a built-in passage if not given
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Compare the model with itself under another policy
    #[arg(long, value_name = "P")]
    against: Option<String>,

    /// Compare the model with itself on another device
    #[arg(long, value_name = "DEVICE")]
    against_device: Option<Device>,

    /// Compare both with the f64 reference as well
    #[arg(long)]
    with_reference: bool,

    /// Show every contract and every layer in the tables
    #[arg(long)]
    full: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write every contract and layer as rows of a table
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Draw the error by layer into this folder, as SVG and PNG
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
}

/// What can be checked by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Kernels at the shapes of the model
    Kernels,
    /// The model, layer by layer
    Model,
}

/// What the model was run over, and how far it was off.
struct ModelChecks {
    source: TokenSource,
    comparisons: Vec<Comparison>,
}

fn family(text: &str) -> Result<Family, String> {
    Family::ALL.into_iter().find(|family| family.name() == text).ok_or_else(|| {
        let names: Vec<&str> = Family::ALL.iter().map(|family| family.name()).collect();
        format!("there is no op \"{text}\"; there are {}", names.join(", "))
    })
}

/// Carries the command out.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    args.check(context)?;
    output::check_writable(&args.csv)?;
    let model = args.model.open()?;
    let options = Options { overflow: args.model.overflow(), ..context.options_under(None) };
    let backend = options.backend()?;
    let progress = Measuring::start(context);
    let shapes = shapes(&model)?;
    let kernels = if args.wants(Part::Kernels) {
        let what = FamilyChecks {
            backend: &*backend,
            shapes: &shapes,
            policies: &context.policies,
            families: &args.op,
        };
        check_families(&what, &progress)?
    } else {
        Vec::new()
    };
    let checks = if args.wants(Part::Model) {
        let policies = args.policies(context);
        Some(args.compare(
            &Subject { model: &model, options: &options, backend: &*backend },
            &policies,
            &progress,
        )?)
    } else {
        None
    };
    progress.finish();
    let machine = Machine::new(&backend.info(), &measuring::build());
    let report = Report {
        model: &model,
        machine: &machine,
        shapes: &shapes,
        kernels: &kernels,
        checks: checks.as_ref(),
    };
    if let Some(path) = &args.csv {
        output::write_atomically(path, |out| csv::write(out, &report))?;
    }
    let comparisons = checks.as_ref().map_or(&[][..], |checks| &checks.comparisons);
    if let Some(folder) = &args.plot {
        let picture = parity::error_by_layer(&report.name(), comparisons);
        output::write_picture(folder, "error-by-layer", &picture.draw()?)?;
    }
    if args.json {
        output::json(&report.json())?
    } else {
        report.print(if args.full { Detail::Full } else { Detail::Folded })?
    }
    verdict(&kernels, comparisons)
}

impl Args {
    /// Refuses options that would be of no account.
    fn check(&self, context: &Context) -> Result<()> {
        let compares = self.against.is_some() || self.against_device.is_some();
        if self.with_reference && !compares {
            bail!(
                "--with-reference: the reference is always there unless --against or --against-device is given"
            );
        }
        if compares && context.policies.len() > 1 {
            bail!(
                "--against and --against-device compare one policy; --policy was given {} times",
                context.policies.len()
            );
        }
        if !self.wants(Part::Model) {
            let given = [
                ("--against", self.against.is_some()),
                ("--against-device", self.against_device.is_some()),
                ("--text", self.text.is_some()),
                ("--plot", self.plot.is_some()),
            ];
            if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
                bail!("{name} is about the model, and --only asks for kernels");
            }
        }
        if !self.wants(Part::Kernels) && !self.op.is_empty() {
            bail!("--op is about kernels, and only the model is checked");
        }
        Ok(())
    }

    fn wants(&self, part: Part) -> bool {
        let compares = self.against.is_some() || self.against_device.is_some();
        match self.only {
            Some(only) => only == part,
            None if !self.op.is_empty() => part == Part::Kernels,
            None => part == Part::Model || !compares,
        }
    }

    fn policies(&self, context: &Context) -> Vec<Option<PrecisionPolicy>> {
        if context.policies.is_empty() {
            return vec![None];
        }
        context.policies.iter().copied().map(Some).collect()
    }

    /// Runs the model under each policy, and holds it against the reference or what was named.
    fn compare(
        &self,
        subject: &Subject<'_>,
        policies: &[Option<PrecisionPolicy>],
        progress: &Measuring,
    ) -> Result<ModelChecks> {
        let text = self.text.as_deref().map(read_text).transpose()?;
        let (tokens, source) = parity::tokens(subject.model, text.as_deref(), self.tokens.get())?;
        let other = self.other(subject.options)?;
        let judge = |recording: &Recording, options: &Options| -> Result<Comparison> {
            let truth = record_reference(subject.model, options, &tokens, progress)?;
            let comparison = Comparison::with_reference(recording, &truth);
            if comparison.holds() || comparison.first_non_finite.is_some() {
                return Ok(comparison);
            }
            // The kernels or the policy: what cannot be avoided tells which.
            let formats = record_formats(subject.model, options, &tokens, progress)?;
            Ok(comparison.with_formats(&formats, &truth))
        };
        let mut comparisons = Vec::new();
        for &policy in policies {
            let options = Options { policy, ..subject.options.clone() };
            let one = record(&Subject { options: &options, ..*subject }, &tokens, progress)?;
            if let Some(other) = &other {
                let backend = other.backend()?;
                let against = Subject { options: other, backend: &*backend, ..*subject };
                let against: Recording = record(&against, &tokens, progress)?;
                comparisons.push(Comparison::between(&one, &against));
                if self.with_reference {
                    comparisons.push(judge(&one, &options)?);
                    comparisons.push(judge(&against, other)?);
                }
            } else {
                comparisons.push(judge(&one, &options)?);
            }
        }
        Ok(ModelChecks { source, comparisons })
    }

    /// What the subject is compared with, where something was named.
    fn other(&self, options: &Options) -> Result<Option<Options>> {
        if self.against.is_none() && self.against_device.is_none() {
            return Ok(None);
        }
        let policy = self.against.as_deref().map(context::policy).transpose().context("--against")?;
        Ok(Some(Options {
            policy: policy.or(options.policy),
            device: self.against_device.unwrap_or(options.device),
            ..options.clone()
        }))
    }
}

/// The sizes that the model's kernels see.
fn shapes(model: &Model) -> Result<Shapes> {
    let program = arch::program(model.config()).map_err(mantissa::Error::from)?;
    Shapes::of(&program).context("the model lacks a part that kernels could be tried at the shapes of")
}

/// Fails where something does not hold.
fn verdict(kernels: &[ContractCheck], comparisons: &[Comparison]) -> Result<()> {
    let contracts = kernels.iter().filter(|check| !check.holds()).count();
    let models = comparisons.iter().filter(|comparison| !comparison.holds()).count();
    match (contracts, models) {
        (0, 0) => Ok(()),
        (contracts, 0) => bail!("{contracts} of {} contracts do not hold", kernels.len()),
        (0, models) => bail!("{models} of {} comparisons of the model do not hold", comparisons.len()),
        (contracts, models) => bail!(
            "{contracts} of {} contracts and {models} of {} comparisons of the model do not hold",
            kernels.len(),
            comparisons.len()
        ),
    }
}
