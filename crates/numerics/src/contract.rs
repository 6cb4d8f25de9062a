//! What one kernel does to numbers, as a fact that can be looked up, compared and refused.
//!
//! A [`ContractQuery`] is what a plan asks for; an [`OpContract`] is what a backend promises; [`Unsupported`] is
//! the answer where nothing promised fits.

use std::fmt;

use crate::Format;

/// A kernel family: one operation of the vocabulary, whoever computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Row lookup in the token table.
    Embedding,
    /// Root-mean-square normalisation, with or without a preceding residual addition.
    RmsNorm,
    /// Rotary position embedding on its own.
    Rope,
    /// Row-wise softmax.
    Softmax,
    /// Scaled dot-product attention with a materialised score matrix.
    Sdpa,
    /// Matrix product with weights (GEMV for one row, GEMM for many), bias and residual fused.
    Matmul,
    /// Query, key and value projections with bias, head norms and RoPE fused, writing the KV cache.
    Qkv,
    /// Flash attention over the paged KV cache, for prefill and decode.
    Attention,
    /// Gate and up projections with `silu(gate) * up` fused.
    SwiGlu,
    /// SwiGLU, down projection and residual addition as one step.
    Ffn,
    /// Sum of two activations.
    Residual,
    /// Matrix product with the output matrix into f32 logits.
    Logits,
}

impl Family {
    /// Every family, in the order of the documentation.
    pub const ALL: [Family; 12] = [
        Family::Embedding,
        Family::RmsNorm,
        Family::Rope,
        Family::Softmax,
        Family::Sdpa,
        Family::Matmul,
        Family::Qkv,
        Family::Attention,
        Family::SwiGlu,
        Family::Ffn,
        Family::Residual,
        Family::Logits,
    ];

    /// The name in tables and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Embedding => "embedding",
            Family::RmsNorm => "rms_norm",
            Family::Rope => "rope",
            Family::Softmax => "softmax",
            Family::Sdpa => "sdpa",
            Family::Matmul => "matmul",
            Family::Qkv => "qkv",
            Family::Attention => "attention",
            Family::SwiGlu => "swiglu",
            Family::Ffn => "ffn",
            Family::Residual => "residual",
            Family::Logits => "logits",
        }
    }

    /// Whether a kernel of this family reads a weight operand.
    pub const fn has_weights(self) -> bool {
        matches!(
            self,
            Family::Embedding
                | Family::RmsNorm
                | Family::Matmul
                | Family::Qkv
                | Family::SwiGlu
                | Family::Ffn
                | Family::Logits
        )
    }

    /// Whether a kernel of this family reads or writes the KV cache.
    pub const fn has_cache(self) -> bool {
        matches!(self, Family::Qkv | Family::Attention)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the KV cache stores a value: its format and, for 8-bit formats, the format of the stored scales.
///
/// One scale belongs to one head's vector of one token, for keys and values separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheFormat {
    /// Format of keys and values.
    pub format: Format,
    /// Format of the scales, where the format needs them.
    pub scales: Option<Format>,
}

impl CacheFormat {
    /// A cache without scales.
    pub const fn plain(format: Format) -> CacheFormat {
        CacheFormat { format, scales: None }
    }

    /// Bytes of one head's vector of `head_dim` values, its scale included.
    pub const fn vector_bytes(self, head_dim: usize) -> usize {
        let scale = match self.scales {
            Some(format) => format.bits() as usize / 8,
            None => 0,
        };
        head_dim * self.format.bits() as usize / 8 + scale
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scales {
            None => f.pad(self.format.name()),
            Some(scales) => f.pad(&format!("{}+{}", self.format.name(), scales.name())),
        }
    }
}

/// The storage combination that a step of a plan asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContractQuery {
    /// The family.
    pub family: Family,
    /// Storage of the weight operand, where the family has one.
    pub weights: Option<Format>,
    /// Storage of the activations read and, except for logits, written.
    pub activations: Format,
    /// Storage of the KV cache, where the family touches it.
    pub cache: Option<CacheFormat>,
    /// Format in which sums are kept.
    pub accumulate: Format,
}

/// Formats in which weights and activations can be stored unquantised.
pub const STORAGE: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

/// Formats of the KV cache that a policy can ask for.
pub const CACHES: [CacheFormat; 5] = [
    CacheFormat::plain(Format::F32),
    CacheFormat::plain(Format::F16),
    CacheFormat::plain(Format::Bf16),
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F16) },
    CacheFormat { format: Format::F8E4M3, scales: Some(Format::F32) },
];

impl ContractQuery {
    /// Every combination of [`STORAGE`] and [`CACHES`] in every family, with sums in f32: what a backend for unquantised
    /// models has a kernel for.
    pub fn unquantised() -> Vec<ContractQuery> {
        let mut all = Vec::new();
        for family in Family::ALL {
            let weights: Vec<Option<Format>> =
                if family.has_weights() { STORAGE.map(Some).to_vec() } else { vec![None] };
            let caches: Vec<Option<CacheFormat>> =
                if family.has_cache() { CACHES.map(Some).to_vec() } else { vec![None] };
            for &weights in &weights {
                for activations in STORAGE {
                    for &cache in &caches {
                        let accumulate = Format::F32;
                        all.push(ContractQuery { family, weights, activations, cache, accumulate });
                    }
                }
            }
        }
        all
    }

    /// Every rounding between the operands and storage, as the rules for numbers have it for all backends alike: once,
    /// where a value is stored.
    pub const fn rounding(&self) -> &'static [RoundingPoint] {
        match (self.family, self.cache) {
            (Family::Qkv, Some(CacheFormat { scales: Some(_), .. })) => {
                &[RoundingPoint::Output, RoundingPoint::CacheWrite, RoundingPoint::CacheScale]
            }
            (Family::Qkv, _) => &[RoundingPoint::Output, RoundingPoint::CacheWrite],
            (Family::Ffn, _) => &[RoundingPoint::Intermediate, RoundingPoint::Output],
            _ => &[RoundingPoint::Output],
        }
    }

    /// Storage of the result: f32 for logits, the activations' for all others.
    pub const fn output(&self) -> Format {
        match self.family {
            Family::Logits => Format::F32,
            _ => self.activations,
        }
    }

    /// How many fields differ.
    fn distance(&self, other: &ContractQuery) -> u32 {
        u32::from(self.weights != other.weights)
            + u32::from(self.activations != other.activations)
            + u32::from(self.cache != other.cache)
            + u32::from(self.accumulate != other.accumulate)
    }
}

impl fmt::Display for ContractQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.family)?;
        if let Some(weights) = self.weights {
            write!(f, "weights={weights}, ")?;
        }
        write!(f, "activations={}", self.activations)?;
        if let Some(cache) = self.cache {
            write!(f, ", kv_cache={cache}")?;
        }
        write!(f, ", accumulation={})", self.accumulate)
    }
}

/// How products are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Operands decoded exactly to f32; fused multiply-add, one rounding per term.
    F32Fma,
    /// Pairs of bf16 products added to an f32 accumulator, as `vdpbf16ps` does.
    Bf16Pairs,
    /// Matrix units of a GPU: this many exact products at a time are added to an f32 accumulator, all terms aligned to
    /// the largest and cut off below it; see [`tolerance::matrix_unit_bound`](crate::tolerance::matrix_unit_bound).
    MatrixUnits {
        /// Products of one step.
        depth: usize,
    },
    /// Products and sums in f64, as the reference forms them.
    F64,
    /// No products: a copy or a sum.
    None,
}

/// Where values are rounded on their way to storage. Everything not listed stays in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoundingPoint {
    /// The result, once, to the output format.
    Output,
    /// Keys and values, once, to the cache format, after bias, head norm and RoPE.
    CacheWrite,
    /// The scale of a cached vector, once, to the format of the scales.
    CacheScale,
    /// The activated intermediate `silu(gate) * up`, once, to the activation format.
    Intermediate,
    /// Attention's softmax weights, times the scales of the values where they have some, to the sum of two numbers of the
    /// activation format: the nearest one, and the nearest one to what is left. With scales, but for scales in f16 and
    /// activations in bf16, the weights of a span are split as multiples of the power of two below the largest of them.
    SoftmaxWeights,
}

/// The order in which a sum is taken: part of the contract, so that the same input gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// No reduction.
    Elementwise,
    /// One chain over the reduced index, ascending.
    Ascending,
    /// Interleaved chains: chain `i` takes the indices `k` with `k / group % lanes == i`, ascending.
    Lanes {
        /// Chains; a power of two where they are merged as a tree.
        lanes: usize,
        /// Neighbouring indices that belong to one chain.
        group: usize,
        /// How the chains are added up.
        merge: Merge,
    },
    /// The index is cut into segments; each is one chain from zero, ascending, and the segments' sums are added in
    /// ascending order.
    Segments {
        /// Indices of a segment; the last one may have fewer.
        length: usize,
    },
    /// Attention: spans of absolute positions have a softmax of their own, and are merged in ascending order,
    /// scaled to the larger maximum.
    Spans {
        /// Positions in a span.
        positions: usize,
    },
    /// Attention: as [`Order::Spans`] with exponents to base 2, but the spans are merged into sections, and the sections
    /// merged in ascending order.
    Sections {
        /// Positions in a span.
        positions: usize,
        /// Spans in a section.
        spans: usize,
    },
    /// Fixed for one device and library version, but neither ours to state nor independent of other rows.
    Library,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Elementwise => f.write_str("elementwise"),
            Order::Ascending => f.write_str("ascending"),
            Order::Lanes { lanes, group, merge } => {
                let name = match merge {
                    Merge::Tree => "lanes",
                    Merge::Ascending => "chains",
                };
                write!(f, "{name}{lanes}")?;
                if *group == 1 { Ok(()) } else { write!(f, "x{group}") }
            }
            Order::Segments { length } => write!(f, "segments{length}"),
            Order::Spans { positions } => write!(f, "spans{positions}"),
            Order::Sections { positions, spans } => write!(f, "spans{positions}x{spans}"),
            Order::Library => f.write_str("library"),
        }
    }
}

/// How the chains of [`Order::Lanes`] are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Merge {
    /// Each level adds the upper half of the chains to the lower half.
    Tree,
    /// One after the other, ascending from zero.
    Ascending,
}

/// What happens to subnormal operands and results of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subnormals {
    /// Kept, as IEEE 754 says.
    Kept,
    /// Taken as zero inside products and sums (`vdpbf16ps` does); storage keeps them.
    FlushedInProducts,
}

/// What one kernel does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OpContract {
    /// The storage combination that this contract answers.
    pub query: ContractQuery,
    /// Storage of the result.
    pub output: Format,
    /// How products are formed.
    pub compute: Compute,
    /// Every rounding between the operands and storage.
    pub rounding: &'static [RoundingPoint],
    /// Order of the sums.
    pub order: Order,
    /// Treatment of subnormals.
    pub subnormals: Subnormals,
}

impl fmt::Display for OpContract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = &self.query;
        if let Some(weights) = query.weights {
            write!(f, "{weights}x")?;
        }
        write!(f, "{}", query.activations)?;
        if let Some(cache) = query.cache {
            write!(f, "[{cache}]")?;
        }
        let compute = match self.compute {
            Compute::F32Fma => "fma",
            Compute::Bf16Pairs => "bf16-pairs",
            Compute::MatrixUnits { depth } => &format!("mma-k{depth}"),
            Compute::F64 => "f64",
            Compute::None => "copy",
        };
        write!(f, ">{} {compute}/{}", self.output, query.accumulate)?;
        match self.order {
            Order::Elementwise => Ok(()),
            order => write!(f, " {order}"),
        }?;
        match self.subnormals {
            Subnormals::Kept => Ok(()),
            Subnormals::FlushedInProducts => write!(f, " ftz"),
        }
    }
}

/// No kernel of a backend answers a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{role}: {backend} has no kernel {query}{}", nearest_text(.nearest))]
pub struct Unsupported {
    /// The step or tensor for which it was wanted.
    pub role: String,
    /// The backend that was asked.
    pub backend: String,
    /// What was wanted.
    pub query: ContractQuery,
    /// Supported combinations of the same family that differ least.
    pub nearest: Vec<ContractQuery>,
}

fn nearest_text(nearest: &[ContractQuery]) -> String {
    if nearest.is_empty() {
        return "; it supports no combination of this family".into();
    }
    let names: Vec<String> = nearest.iter().map(ToString::to_string).collect();
    format!("; nearest supported: {}", names.join(", "))
}

/// Finds the contract that answers `query`, or says what comes nearest.
///
/// # Errors
/// [`Unsupported`] with up to three supported combinations of the same family.
pub fn look_up<'a>(
    contracts: &'a [OpContract],
    query: &ContractQuery,
    backend: &str,
    role: &str,
) -> Result<&'a OpContract, Unsupported> {
    if let Some(found) = contracts.iter().find(|contract| contract.query == *query) {
        return Ok(found);
    }
    let mut nearest: Vec<ContractQuery> =
        contracts.iter().map(|contract| contract.query).filter(|q| q.family == query.family).collect();
    nearest.sort_by_key(|candidate| candidate.distance(query));
    nearest.truncate(3);
    Err(Unsupported { role: role.to_owned(), backend: backend.to_owned(), query: *query, nearest })
}
