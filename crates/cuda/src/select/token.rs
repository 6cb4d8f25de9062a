//! Whether a token of one sequence is computed by one kernel, or kernel by kernel.

use mantissa_ops::backend::KernelChoice;
use mantissa_ops::{Program, ShapeClass};

use super::{Chooser, Formats};
use crate::families::products::{MatmulBackend, VariantPreference};
use crate::families::token::{self, Chain, DecodeVariant, Refusal, Sizes};
use crate::kernel::KernelSpec;

impl Chooser {
    /// The sizes of the kernel for a token.
    ///
    /// # Errors
    /// Why there is none, or another is preferred.
    pub fn token(&self, program: &Program, formats: Formats) -> Result<Sizes, Refusal> {
        self.token_is_preferred()?;
        let Formats { weights, activations, cache } = formats;
        if !token::serves_formats(weights, activations, cache) {
            return Err(Refusal::Formats { weights, activations, cache });
        }
        let sizes = Sizes::of(program, &Chain::of(program)?, cache, self.device)?;
        sizes.ranges(1)?;
        Ok(sizes)
    }

    fn token_is_preferred(&self) -> Result<(), Refusal> {
        let preferred = |preference| Err(Refusal::Preferred { preference });
        match (self.decode, self.preferences.variant, self.preferences.small_n_max) {
            (DecodeVariant::Graph, ..) => preferred("decode variant graph"),
            (_, VariantPreference::Gemm, _) => preferred("matmul variant gemm"),
            (_, VariantPreference::Auto, Some(0)) => preferred("no rows for the matrix kernels for few"),
            _ if !token::serves_device(self.device) => Err(Refusal::Device),
            _ => Ok(()),
        }
    }

    /// How all steps of a batch of a class are launched, and why.
    pub fn launches(&self, program: &Program, formats: Formats, class: ShapeClass) -> KernelChoice {
        let choice = |kernel: String, why: String| KernelChoice { kernel, why };
        let refusal = match (class, self.preferences.backend) {
            (ShapeClass::Prefill, MatmulBackend::CublasLt) => {
                let why = "launches of the matrix library cannot be recorded";
                return choice("kernel by kernel".to_owned(), why.to_owned());
            }
            (ShapeClass::Prefill, _) => {
                let why = "batches with several rows of a sequence seldom have the same shape again";
                return choice("kernel by kernel".to_owned(), why.to_owned());
            }
            (ShapeClass::SmallBatch, _) => "the kernel for a token takes one row".to_owned(),
            (ShapeClass::Decode, _) => match self.token(program, formats) {
                Ok(sizes) => {
                    let why =
                        "one kernel for all steps, whose weights stream on while results pass between blocks";
                    return choice(token_spec(formats, &sizes).to_string(), why.to_owned());
                }
                Err(refusal) => refusal.to_string(),
            },
        };
        choice("one graph".to_owned(), refusal)
    }
}

/// The kernel of a token.
pub(crate) fn token_spec(formats: Formats, sizes: &Sizes) -> KernelSpec {
    token::spec(formats.activations, sizes)
}
