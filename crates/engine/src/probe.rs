//! Finds the first step of a run whose result is not finite.

use std::fmt;

use mantissa_ops::{Batch, Plan, RunError, Session, StepObserver, ValueReader};

/// Where numbers first stopped being finite.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    /// The step and the format of its result; nothing where the step was not found.
    place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq)]
struct Place {
    step: String,
    row: usize,
    column: usize,
    number: f32,
    format: String,
}

impl NonFinite {
    /// The logits were not finite, but a second run of the same batch was.
    pub(crate) fn vanished() -> NonFinite {
        NonFinite { place: None }
    }

    /// Name of the first step with a non-finite result.
    pub fn step(&self) -> Option<&str> {
        self.place.as_ref().map(|place| place.step.as_str())
    }
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place { step, row, column, number, format }) => write!(
                f,
                "the logits are not finite: step {step} first gave {number} (row {row}, column {column}) stored as \
                 {format}; choose a policy whose activations have a wider range, such as bf16 or f32"
            ),
            None => write!(f, "the logits are not finite, but no step of a second run was"),
        }
    }
}

/// Runs the batch again, looking at the result of every step.
///
/// # Errors
/// As [`Session::run`].
pub fn first_non_finite(session: &mut dyn Session, batch: &Batch<'_>) -> Result<Option<NonFinite>, RunError> {
    let plan = session.plan().clone();
    let mut probe = Probe { plan: &plan, rows: batch.rows(), found: None };
    session.run_observed(batch, &mut probe)?;
    Ok(probe.found)
}

struct Probe<'a> {
    plan: &'a Plan,
    rows: usize,
    found: Option<NonFinite>,
}

impl StepObserver for Probe<'_> {
    fn after_step(&mut self, step: usize, values: &dyn ValueReader) {
        if self.found.is_some() {
            return;
        }
        let step = &self.plan.steps[step];
        let output = step.op.output();
        let width = self.plan.program.value(output).width;
        let numbers = values.read(output);
        let used = &numbers[..numbers.len().min(self.rows * width)];
        if let Some(index) = used.iter().position(|number| !number.is_finite()) {
            self.found = Some(NonFinite {
                place: Some(Place {
                    step: step.name.clone(),
                    row: index / width,
                    column: index % width,
                    number: used[index],
                    format: self.plan.value_format(output).to_string(),
                }),
            });
        }
    }
}
