//! Reducing rows of logits to what samplers need: `kernels/sampling.cu`.

use mantissa_ops::reduction::BLOCK;

use super::block_per_row;
use crate::kernel::{Alias, KernelSpec, Launch, SourceFile};

/// Tokens that one request can have ranked.
pub const MOST_RANKED: usize = 2048;

/// Logits of the longest row.
pub const MOST_LOGITS: usize = 262_144;

const SPAN_THREADS: u32 = 128;
/// Logits that one block of [`Kernel::Largest`] looks at.
const SPAN: usize = 4096;
const RANK_THREADS: u32 = 256;
const SUM_THREADS: u32 = 256;
/// Chunks that one block adds up.
const SUM_CHUNKS: usize = 2;

/// One row's request; `sums` is 1 where weights are to be added up for top-p, 2 for a draw from all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Request {
    pub uniform: f64,
    pub inverse_temperature: f32,
    pub floor: f32,
    pub sums: u32,
    pub count: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub first_seen: u32,
    pub end_seen: u32,
    pub repetition: f32,
    pub frequency: f32,
    pub presence: f32,
    pub unused: u32,
}

/// A token of a sequence's past.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(missing_docs, reason = "as in the ops crate")]
pub struct Seen {
    pub token: u32,
    pub generated: u32,
}

/// What is found of a row beside its sums.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Found {
    /// Key of the best logit before penalties; 0 where a logit is not finite.
    pub largest: u64,
    /// Key of the token wished for; all ones where none was found. Nothing is written where the first says all.
    pub chosen: u64,
}

/// Arguments of all kernels of the file. Some addresses are of page-locked memory of the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the kernel's file says what they are")]
pub struct Args {
    pub logits: u64,
    pub host_requests: u64,
    pub requests: u64,
    pub seen: u64,
    pub saved: u64,
    pub groups: u64,
    pub bests: u64,
    pub sums: u64,
    pub found: u64,
    pub own_sums: u64,
    pub unpenalised: u64,
    pub vocabulary: u32,
    pub stride: u32,
    pub spans: u32,
    pub chunks: u32,
    pub next_host: u64,
    pub next_batch: u64,
    pub next_first: u32,
    pub next_end: u32,
}

/// The kernels, in the order in which they are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The best key of each group and span; after [`Kernel::Penalise`] again.
    Largest,
    /// Sums of weights at temperature 1.
    OwnSums,
    /// The same, with nothing before it, where best keys are there already; brings a batch, too.
    FirstSums,
    /// Applies penalties.
    Penalise,
    /// Sums of the weights that requests ask for.
    WishedSums,
    /// Ranks.
    Rank,
    /// Draws.
    Draw,
    /// Takes penalties back.
    Restore,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 8] = [
        Kernel::Largest,
        Kernel::OwnSums,
        Kernel::FirstSums,
        Kernel::Penalise,
        Kernel::WishedSums,
        Kernel::Rank,
        Kernel::Draw,
        Kernel::Restore,
    ];

    /// The kernel's name.
    pub fn spec(self) -> KernelSpec {
        let entry = match self {
            Kernel::Largest => "largest",
            Kernel::OwnSums | Kernel::FirstSums | Kernel::WishedSums => "sums",
            Kernel::Penalise | Kernel::Restore => "penalties",
            Kernel::Rank => "rank",
            Kernel::Draw => "draw",
        };
        let wished = u32::from(self == Kernel::WishedSums);
        let first = u32::from(self == Kernel::FirstSums);
        let restore = u32::from(self == Kernel::Restore);
        let counts = [("WISHED", wished), ("FIRST", first), ("RESTORE", restore)];
        let aliases = counts.map(|(name, count)| Alias::count(name, count)).to_vec();
        KernelSpec { file: SourceFile::Sampling, entry, aliases }
    }

    /// The launch for `rows` rows of `vocabulary` logits.
    pub fn launch_shape(self, rows: usize, vocabulary: usize) -> Launch {
        let grid = |across: usize| [across as u32, rows as u32, 1];
        match self {
            Kernel::Largest => Launch { grid: grid(spans(vocabulary)), block: SPAN_THREADS, shared: 0 },
            Kernel::OwnSums | Kernel::FirstSums | Kernel::WishedSums => {
                let beyond = usize::from(self == Kernel::FirstSums);
                let blocks = chunks(vocabulary).div_ceil(SUM_CHUNKS) + beyond;
                Launch { grid: grid(blocks), block: SUM_THREADS, shared: 0 }
            }
            Kernel::Penalise | Kernel::Restore => block_per_row(rows, 256),
            Kernel::Rank => block_per_row(rows, RANK_THREADS),
            Kernel::Draw => block_per_row(rows, BLOCK as u32),
        }
    }
}

/// Blocks of [`Kernel::Largest`] for a row.
pub fn spans(vocabulary: usize) -> usize {
    vocabulary.div_ceil(SPAN)
}

/// Groups of logits of a row, of which each has a best key.
pub fn groups(vocabulary: usize) -> usize {
    spans(vocabulary) * SPAN_THREADS as usize
}

/// Sums of a row.
pub fn chunks(vocabulary: usize) -> usize {
    vocabulary.div_ceil(BLOCK)
}
