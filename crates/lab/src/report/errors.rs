//! How far a policy's numbers lie from the truth.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mantissa::Options;
use mantissa::numerics::{Format, PrecisionPolicy};

use super::Study;
use crate::LabError;
use crate::parity::{self, Comparison, Recording, Subject};

/// What the f64 reference computed, by the format of the weights: nothing else of a policy changes it.
#[derive(Default)]
pub(super) struct References(HashMap<Format, Recording>);

impl Study<'_> {
    /// Runs a few tokens under a policy and through the f64 reference.
    pub(super) fn error(
        &self,
        policy: PrecisionPolicy,
        references: &mut References,
    ) -> Result<Comparison, LabError> {
        let count = self.extent.reference_tokens.min(self.model.config().max_position_embeddings);
        let (tokens, _) = parity::tokens(self.model, None, count)?;
        let options = Options { policy: Some(policy), ..self.options.clone() };
        let subject = Subject { model: self.model, options: &options, backend: self.backend };
        let found = parity::record(&subject, &tokens, self.progress)?;
        let weights = policy.weights();
        let reference = match references.0.entry(weights) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(parity::record_reference(self.model, &options, &tokens, self.progress)?)
            }
        };
        Ok(Comparison::with_reference(&found, reference))
    }
}
