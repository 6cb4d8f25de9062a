//! From a program to the phases of the token kernel.

use mantissa_numerics::Format;
use mantissa_numerics::contract::CacheFormat;
use mantissa_ops::op::Heads;
use mantissa_ops::{Program, WeightId};

use super::shares::{self, Beside, Dealing, PhaseTiles, Starts};
use super::{
    Chain, DIM, FILL_COLUMNS, FILL_ROWS, Kind, Layer, MOST_SWEEPS, MOST_TILES, NORM_SWEEP, Phase, Refusal,
    SLOT_BYTES, SUM_BYTES, Shared, TileRange, WARPS,
};
use crate::error::CudaError;
use crate::families::attention::{SECTION, SPAN};
use crate::families::cache::CacheLayer;
use crate::families::products::{Capabilities, SEGMENT};
use crate::tensor_map::{BoxWidth, CopyBox, Matrix, TensorMap};

/// Phases of a layer.
const LAYER_PHASES: usize = 5;
/// Phases of the last layer and of the logits behind it.
pub const LAST_PHASES: usize = LAYER_PHASES + 1;
/// Kinds of phases.
pub const KINDS: usize = Kind::Logits as usize + 1;
/// Outputs of a tile.
const OUTPUTS: usize = 8;
/// Bytes of a weight.
const WEIGHT_BYTES: usize = 2;

/// What the host has put where.
pub struct Places<'a> {
    /// Address of a weight, and values from row to row.
    pub weight: &'a dyn Fn(WeightId) -> (u64, usize),
    /// A layer of the cache, and how many vectors it has.
    pub cache: &'a dyn Fn(usize) -> (CacheLayer, usize),
    /// Address of the descriptions of matrices.
    pub maps: u64,
}

/// A matrix as it is described to the copy engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described {
    /// Weights, of which a copy moves eight rows of two segments.
    Weights(Matrix),
    /// Keys and values of a layer, of which a copy moves as many neighbours as a span and a page have.
    Cache(Matrix, CopyBox),
}

impl Described {
    /// What the kernel is given.
    ///
    /// # Errors
    /// As [`TensorMap::new`].
    pub fn map(self) -> Result<TensorMap, CudaError> {
        match self {
            Described::Weights(matrix) => {
                let width = BoxWidth::Bytes128;
                let panels = FILL_COLUMNS * WEIGHT_BYTES / width.bytes();
                TensorMap::of_panels(matrix, CopyBox { rows: FILL_ROWS, width }, panels)
            }
            Described::Cache(matrix, piece) => TensorMap::new(matrix, piece),
        }
    }
}

/// Sizes of a chain, on which buffers, shared memory and tiles depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Values of the residual stream.
    pub width: usize,
    /// Values between the halves of a feed-forward layer.
    pub inner: usize,
    /// Logits.
    pub vocabulary: usize,
    /// Heads of every layer.
    pub heads: Heads,
    /// Format of keys and values.
    pub cache: CacheFormat,
    /// Blocks of the launch.
    pub blocks: usize,
    /// Shared memory of each.
    pub shared: Shared,
}

/// What the kernel is told of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// In the order in which they are gone through.
    pub phases: Vec<Phase>,
    /// What the addresses of maps in phases stand for, in their order.
    pub matrices: Vec<Described>,
    /// For each [`table`] of sections, and each [`Kind`], the tiles of every block.
    pub ranges: Vec<TileRange>,
}

impl Sizes {
    /// Those of a program's chain on a device.
    ///
    /// # Errors
    /// [`Refusal::Size`] where a size is not for the kernel.
    pub fn of(
        program: &Program,
        chain: &Chain<'_>,
        cache: CacheFormat,
        device: Capabilities,
    ) -> Result<Sizes, Refusal> {
        let heads = chain.heads();
        let width = program.value(chain.embedding.out).width;
        let inner = program.weight(chain.layers[0].ffn.down).columns;
        let vocabulary = program.weight(chain.logits.weight).rows;
        let blocks = device.multiprocessors as usize;
        for (what, size) in [("the residual stream", width), ("the feed-forward layer", inner)] {
            if !size.is_multiple_of(64) {
                return Err(Refusal::Size { what, size, wanted: "a multiple of 64".to_owned() });
            }
        }
        if width > MOST_SWEEPS * NORM_SWEEP {
            let wanted = format!("{} or less", MOST_SWEEPS * NORM_SWEEP);
            return Err(Refusal::Size { what: "the residual stream", size: width, wanted });
        }
        if !vocabulary.is_multiple_of(OUTPUTS) {
            let wanted = "a multiple of 8".to_owned();
            return Err(Refusal::Size { what: "the vocabulary", size: vocabulary, wanted });
        }
        // What a block reads is written anew only after every block has contributed to what the writers wait for.
        for (what, size) in [("the feed-forward layer", inner), ("the vocabulary", vocabulary)] {
            if size < blocks * OUTPUTS {
                let wanted = format!("{} or more: a tile for each multiprocessor", blocks * OUTPUTS);
                return Err(Refusal::Size { what, size, wanted });
            }
        }
        let columns = width.max(inner).max(heads.query_width());
        let phases = chain.layers.len() * LAYER_PHASES + 1;
        let shared = Shared::divide(columns, phases, heads, cache, device).ok_or(Refusal::Size {
            what: "a row of weights",
            size: columns,
            wanted: format!("less: shared memory has {} bytes a block", device.shared_per_block),
        })?;
        Ok(Sizes { layers: chain.layers.len(), width, inner, vocabulary, heads, cache, blocks, shared })
    }

    /// Phases of a token.
    pub fn phases(&self) -> usize {
        self.layers * LAYER_PHASES + 1
    }

    /// Matrices that are described: the weights of each phase, or the cache.
    pub fn matrices(&self) -> usize {
        self.phases()
    }

    /// The phases of a layer that have tiles, in their order.
    fn layer_tiles(&self) -> [(Kind, PhaseTiles); 4] {
        let Sizes { width, inner, heads, .. } = *self;
        let pairs = (heads.query + 2 * heads.key_value) * heads.dim / 2;
        let tiles = |outputs: usize, columns: usize, rows: usize| {
            let fills = rows / FILL_ROWS * columns.div_ceil(FILL_COLUMNS);
            // Of each row a sum for every segment.
            let sums = fills * FILL_ROWS * (FILL_COLUMNS / SEGMENT) * size_of::<f32>();
            PhaseTiles {
                tiles: outputs.div_ceil(OUTPUTS),
                fills,
                bytes: rows * columns * WEIGHT_BYTES,
                least: 0,
                most: (SUM_BYTES / sums).min(MOST_TILES),
            }
        };
        [
            (Kind::Qkv, tiles(pairs, width, 2 * OUTPUTS)),
            (Kind::Output, tiles(width, heads.query_width(), OUTPUTS)),
            (Kind::GateUp, PhaseTiles { least: 1, ..tiles(inner, width, 2 * OUTPUTS) }),
            (Kind::Down, tiles(width, inner, OUTPUTS)),
        ]
    }

    /// Whether a block's part of a layer's weights is more than two rings.
    pub fn has_long_layers(&self) -> bool {
        let bytes: usize = self.layer_tiles().iter().map(|(_, tiles)| tiles.tiles * tiles.bytes).sum();
        bytes / self.blocks > 2 * self.shared.slots * SLOT_BYTES
    }

    /// Keys and values of a layer: blocks that read them have fewer weights. Codes take as long as values of activations; where
    /// at most half of the blocks have any, the others wait for these and not for memory.
    fn beside(&self, sections: usize) -> Beside {
        let Sizes { heads, cache, blocks, .. } = *self;
        let (units, vector) = (heads.key_value * sections, cache.vector_bytes(heads.dim));
        let vector = if 2 * units > blocks { vector } else { vector.max(heads.dim * WEIGHT_BYTES) };
        Beside { units, bytes: 2 * SECTION * SPAN * vector }
    }

    /// The tiles of the phases of a layer, where a token sees up to `sections` sections of positions, and more than half as
    /// many: as they suit the middle of these, where the longest context suffers nothing by it.
    fn starts(&self, sections: usize) -> Vec<Starts> {
        let blocks = self.blocks;
        let mut phases = self.layer_tiles().map(|(_, tiles)| tiles);
        let even = |phase: &mut PhaseTiles| phase.most = phase.most.min(phase.tiles.div_ceil(blocks));
        let longest = self.beside(sections);
        if (blocks / 2 + 1..=blocks).contains(&longest.units) && !self.has_long_layers() {
            // Most blocks have a unit and none has two: who has one has tiles of the projection in front of attention or of
            // the one behind it, and goes past the other.
            even(&mut phases[0]);
            return shares::divide(&phases, longest, Dealing::First(2), blocks, WARPS);
        }
        if sections == 1 {
            // Blocks wait for words then, and never for memory: phases end soonest where none has more tiles than others.
            phases.iter_mut().for_each(even);
        }
        let divide = |beside| shares::divide(&phases, beside, Dealing::Largest, blocks, WARPS);
        let heaviest = |starts: &[Starts]| shares::heaviest(&phases, starts, longest, blocks);
        let (middle, most) = (divide(self.beside((3 * sections).div_ceil(4))), divide(longest));
        if heaviest(&middle) <= heaviest(&most) { middle } else { most }
    }

    /// For each [`Kind`], in order, the tiles of every block, where a token sees up to `sections` sections of positions, and
    /// more than half as many.
    ///
    /// # Errors
    /// [`Refusal::Size`] where blocks have no room for the sums of their tiles.
    pub fn ranges(&self, sections: usize) -> Result<Vec<TileRange>, Refusal> {
        let blocks = self.blocks;
        let (layer, starts) = (self.layer_tiles(), self.starts(sections));
        let mut ranges = vec![TileRange::default(); KINDS * blocks];
        let mut put = |kind: Kind, starts: &[u32]| {
            let row = &mut ranges[kind as usize * blocks..][..blocks];
            for (range, pair) in row.iter_mut().zip(starts.windows(2)) {
                *range = TileRange { first: pair[0], count: pair[1] - pair[0] };
            }
        };
        for ((kind, tiles), starts) in layer.iter().zip(&starts) {
            let most = starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
            if most > tiles.most || starts.last().is_none_or(|&end| end as usize != tiles.tiles) {
                let wanted = format!("{} or fewer for each multiprocessor", tiles.most);
                return Err(Refusal::Size { what: "tiles of a product", size: tiles.tiles, wanted });
            }
            put(*kind, starts);
        }
        let tiles = self.vocabulary.div_ceil(OUTPUTS);
        let even: Vec<u32> = (0..=blocks).map(|block| (tiles * block / blocks) as u32).collect();
        put(Kind::Logits, &even);
        // Ranks.
        for block in 0..blocks {
            ranges[Kind::Attention as usize * blocks + block] = TileRange { first: block as u32, count: 0 };
        }
        Ok(ranges)
    }

    /// Words of each exchange buffer: the residual stream after a layer and within it, the projection of queries, keys and
    /// values, what was attended, what was gated, and records of `sections` sections.
    pub fn exchange_words(&self, sections: usize) -> [usize; 6] {
        let Sizes { width, inner, heads, .. } = *self;
        let projected = (heads.query + 2 * heads.key_value) * heads.dim;
        let records = heads.query * sections * (DIM + 2);
        // Words of the residual stream lie in fours, apart from each other: all blocks read them at the same time.
        [2 * width, 2 * width, projected, heads.query_width() / 2, inner / 2, records]
    }
}

/// The table of tiles for a number of sections: one for each power of two.
pub fn table(sections: usize) -> usize {
    sections.max(1).next_power_of_two().trailing_zeros() as usize
}

/// Tables for up to so many sections.
pub fn tables(sections: usize) -> usize {
    table(sections) + 1
}

impl Lowered {
    /// Lowers a chain, for contexts of up to `sections` sections.
    ///
    /// # Errors
    /// As [`Sizes::ranges`].
    pub fn new(
        program: &Program,
        chain: &Chain<'_>,
        sizes: &Sizes,
        sections: usize,
        places: &Places<'_>,
    ) -> Result<Lowered, Refusal> {
        let mut lowering = Lowering { program, sizes, places, matrices: Vec::new() };
        let mut phases: Vec<Phase> = chain.layers.iter().flat_map(|layer| lowering.layer(layer)).collect();
        let norm = lowering.address(chain.last_norm.weight);
        phases.push(Phase { norm, ..lowering.product(Kind::Logits, chain.logits.weight, sizes.vocabulary) });
        let tables: Result<Vec<_>, Refusal> =
            (0..tables(sections)).map(|table| sizes.ranges(1 << table)).collect();
        Ok(Lowered { phases, matrices: lowering.matrices, ranges: tables?.concat() })
    }
}

/// A layer of the cache, in pairs of bytes.
fn described_cache(cache: CacheLayer, vectors: usize, dim: usize, format: Format) -> Described {
    let width =
        if dim * format.bytes() > BoxWidth::Bytes64.bytes() { BoxWidth::Bytes128 } else { BoxWidth::Bytes64 };
    let (stride, value_bytes) = (cache.stride as usize * format.bytes(), 2);
    let columns = width.bytes() / value_bytes;
    let matrix = Matrix { address: cache.values, rows: vectors, columns, stride, value_bytes };
    Described::Cache(matrix, CopyBox { rows: SPAN.min(1 << cache.page_shift), width })
}

/// What phases are made from.
struct Lowering<'a> {
    program: &'a Program,
    sizes: &'a Sizes,
    places: &'a Places<'a>,
    matrices: Vec<Described>,
}

impl Lowering<'_> {
    /// Where the description of a matrix will lie.
    fn map(&mut self, matrix: Described) -> u64 {
        self.matrices.push(matrix);
        self.places.maps + ((self.matrices.len() - 1) * size_of::<TensorMap>()) as u64
    }

    fn address(&self, id: WeightId) -> u64 {
        (self.places.weight)(id).0
    }

    fn product(&mut self, kind: Kind, id: WeightId, features: usize) -> Phase {
        let (address, values) = (self.places.weight)(id);
        let (rows, columns) = (self.program.weight(id).rows, self.program.weight(id).columns);
        let stride = values * WEIGHT_BYTES;
        let matrix = Matrix { address, rows, columns, stride, value_bytes: WEIGHT_BYTES };
        Phase {
            weights: self.map(Described::Weights(matrix)),
            columns: columns as u32,
            features: features as u32,
            kind: kind as u32,
            range: kind as u32,
            alpha: 1.0,
            ..Phase::default()
        }
    }

    fn layer(&mut self, layer: &Layer<'_>) -> [Phase; LAYER_PHASES] {
        let Sizes { width, inner, heads, cache: CacheFormat { format, .. }, .. } = *self.sizes;
        let pairs = (heads.query + 2 * heads.key_value) * heads.dim / 2;
        let (cache, vectors) = (self.places.cache)(layer.qkv.layer);
        let attention = Phase {
            cache: cache.values,
            scales: cache.scales,
            cache_map: self.map(described_cache(cache, vectors, heads.dim, format)),
            kind: Kind::Attention as u32,
            range: Kind::Attention as u32,
            alpha: 1.0,
            ..Phase::default()
        };
        let qkv = Phase {
            norm: self.address(layer.attention_norm.weight),
            bias: layer.qkv.bias.map_or(0, |bias| self.address(bias)),
            cache: cache.values,
            scales: cache.scales,
            ..self.product(Kind::Qkv, layer.qkv.weight, pairs)
        };
        let gate_up = self.product(Kind::GateUp, layer.ffn.gate_up, inner);
        [
            qkv,
            attention,
            self.product(Kind::Output, layer.output.weight, width),
            Phase { norm: self.address(layer.ffn_norm.weight), ..gate_up },
            self.product(Kind::Down, layer.ffn.down, width),
        ]
    }
}

#[cfg(test)]
mod tests;
