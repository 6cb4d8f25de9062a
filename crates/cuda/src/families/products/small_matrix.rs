//! How the tensor-core kernel for few rows divides its work: `kernels/product_mma_small.cu`.

use super::{Bucket, Capabilities, Epilogue, Product, SEGMENT, Shape};
use crate::kernel::Launch;

/// What a block of the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SmallMatrix {
    /// Rows of the result per pass over the weights.
    pub bucket: Bucket,
    /// Rows of the weights of a tile: 8 or 16.
    pub weight_rows: u32,
    /// Warps, which share the segments of a row.
    pub warps: u32,
    /// Segments that a warp copies ahead.
    pub slots: u32,
    /// What a block holds of its activations.
    pub input: Input,
}

/// What a block holds of its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// All of them, for all of its tiles.
    Whole,
    /// Each warp those of the segment that it multiplies.
    Segment,
}

/// Rows of the result that there are kernels for.
const BUCKETS: [Bucket; 3] = [Bucket::One, Bucket::Eight, Bucket::Sixteen];
/// Warps of a block, at most.
const MOST_WARPS: usize = 20;
/// Bytes of each block that the driver takes of a multiprocessor's shared memory.
const BLOCK_OVERHEAD: u32 = 1024;
/// Bytes that set the rows of a segment apart in shared memory.
const SKEW: usize = 32;
const PITCH: usize = SEGMENT * 2 + SKEW;

impl SmallMatrix {
    /// The division for a product of this shape, where there is one that fits the device.
    pub fn choose(product: Product, shape: Shape, device: Capabilities) -> Option<SmallMatrix> {
        let wanted = Bucket::holding(shape.rows, &BUCKETS);
        let smaller = BUCKETS.into_iter().rev().filter(|bucket| *bucket <= wanted);
        let whole =
            smaller.filter_map(|bucket| SmallMatrix::divided(bucket, 16, shape.columns, device)).next()?;
        // Half a tile where whole ones of one row leave no room beside them, in which the next kernel could begin.
        let alone = whole.bucket == Bucket::One && whole.resident(shape.columns, device) == 1;
        let half = SmallMatrix::divided(whole.bucket, 8, shape.columns, device);
        let chosen = match half {
            Some(half) if alone && product.epilogue != Epilogue::SwiGlu => half,
            _ => whole,
        };
        // A block that has its multiprocessor to itself, and more than one tile, copies ahead by itself.
        let ahead = SmallMatrix { slots: 2, ..chosen };
        let several = chosen.tiles(product, shape) > device.multiprocessors;
        let lonely = several && chosen.resident(shape.columns, device) == 1;
        Some(if lonely && ahead.fits(shape.columns, device) { ahead } else { chosen })
    }

    /// The division with the fewest rounds over the segments that fits.
    fn divided(
        bucket: Bucket,
        weight_rows: u32,
        columns: usize,
        device: Capabilities,
    ) -> Option<SmallMatrix> {
        let segments = segments(columns);
        let division = |rounds: usize, input| {
            let warps = segments.div_ceil(rounds) as u32;
            SmallMatrix { bucket, weight_rows, warps, slots: 1, input }
        };
        (segments.div_ceil(MOST_WARPS)..=segments)
            .flat_map(|rounds| [Input::Whole, Input::Segment].map(|input| division(rounds, input)))
            .find(|division| division.fits(columns, device))
    }

    /// Bytes of shared memory for `rows` rows of the result.
    fn shared(self, columns: usize, rows: usize) -> u32 {
        let (segments, warps) = (segments(columns), self.warps as usize);
        let left = (columns - (segments - 1).min(columns) * SEGMENT) * 2;
        let last = if warps == segments { left.next_multiple_of(128) + SKEW } else { PITCH };
        let weights = self.slots as usize * self.weight_rows as usize * ((warps - 1) * PITCH + last);
        let inputs = match self.input {
            Input::Whole => segments,
            Input::Segment => warps,
        };
        let sums = segments * rows * (self.weight_rows as usize + 4) * size_of::<f32>();
        (weights + inputs * rows * PITCH + sums) as u32
    }

    fn fits(self, columns: usize, device: Capabilities) -> bool {
        self.shared(columns, self.bucket.rows() as usize) <= device.shared_per_block
    }

    /// Blocks of a multiprocessor that registers suffice for.
    fn resident_by_registers(self) -> u32 {
        let threads = if self.bucket == Bucket::Sixteen { 768 } else { 1024 };
        (threads / (self.warps * 32)).max(1)
    }

    /// Blocks that share a multiprocessor.
    fn resident(self, columns: usize, device: Capabilities) -> u32 {
        let shared = self.shared(columns, self.bucket.rows() as usize) + BLOCK_OVERHEAD;
        let by_memory = (device.shared_per_block + BLOCK_OVERHEAD) / shared;
        by_memory.min(self.resident_by_registers()).max(1)
    }

    /// Tiles of the weights.
    fn tiles(self, product: Product, shape: Shape) -> u32 {
        shape.features.div_ceil((self.weight_rows / product.parts()) as usize) as u32
    }

    /// The aliases beside those of all products.
    pub(super) fn aliases(self) -> [(&'static str, u32); 6] {
        [
            ("TOKENS", self.bucket.rows()),
            ("HALF", u32::from(self.weight_rows == 8)),
            ("WARPS", self.warps),
            ("RESIDENT", self.resident_by_registers()),
            ("SLOTS", self.slots),
            ("KEPT", u32::from(self.input == Input::Whole)),
        ]
    }

    /// The launch: where tiles are more than blocks at a time, all blocks take as many of them, one after the other.
    pub(super) fn launch_shape(self, product: Product, shape: Shape, device: Capabilities) -> Launch {
        let tiles = self.tiles(product, shape);
        let at_once = device.multiprocessors * self.resident(shape.columns, device);
        let each = tiles.div_ceil(at_once).max(1);
        let passes = shape.rows.div_ceil(self.bucket.rows() as usize) as u32;
        let rows = shape.rows.min(self.bucket.rows() as usize);
        let shared = self.shared(shape.columns, rows);
        Launch { grid: [tiles.div_ceil(each) * passes, 1, 1], block: self.warps * 32, shared }
    }
}

/// Segments of a row, at least one.
fn segments(columns: usize) -> usize {
    columns.div_ceil(SEGMENT).max(1)
}
