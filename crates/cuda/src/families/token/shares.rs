//! Which tiles of weights each block of the token kernel computes.
//!
//! Every block streams its tiles of a layer one phase after another and runs ahead while it waits for activations, so that
//! a layer takes as long as the block with the most bytes: shares are balanced over a layer, not over a phase.

/// Tiles of one phase of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTiles {
    /// How many there are.
    pub tiles: usize,
    /// Fills of the ring for a tile, which the warps of its block take in turns.
    pub fills: usize,
    /// Bytes of a tile.
    pub bytes: usize,
    /// Tiles that every block must have.
    pub least: usize,
    /// Tiles that a block has room for.
    pub most: usize,
}

/// Units of work beside the tiles of a layer, which blocks take in turns from the first one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    /// How many there are.
    pub units: usize,
    /// Bytes of a unit.
    pub bytes: usize,
}

impl Beside {
    /// Bytes that a block reads for its units.
    pub fn of_block(self, block: usize, blocks: usize) -> usize {
        (self.units + blocks - 1 - block) / blocks * self.bytes
    }
}

/// Who gets the next tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dealing {
    /// Tiles go, the largest first, to the block that has the fewest bytes so far; to the first of several.
    Largest,
    /// Tiles go, those of the first phases so many before others, in their order, to the block that has the fewest bytes so
    /// far; to the last of several.
    First(usize),
}

/// The first tile of each block and, as the last number, the end: a block's tiles of a phase are neighbours.
pub type Starts = Vec<u32>;

/// Divides the tiles of all phases of a layer among `blocks` blocks of `warps` warps.
///
/// A phase ends when its last block does, so that no block takes more tiles of one than its warps get through in as many
/// rounds as an even share takes. Tiles for which no block has room are left over: the last number is then too small.
pub fn divide(
    phases: &[PhaseTiles],
    beside: Beside,
    dealing: Dealing,
    blocks: usize,
    warps: usize,
) -> Vec<Starts> {
    let mut bytes: Vec<usize> = (0..blocks).map(|block| beside.of_block(block, blocks)).collect();
    let mut counts: Vec<Vec<usize>> = phases.iter().map(|phase| vec![phase.least; blocks]).collect();
    for phase in phases {
        bytes.iter_mut().for_each(|bytes| *bytes += phase.least * phase.bytes);
    }
    let mut order: Vec<usize> = (0..phases.len()).collect();
    let first = if let Dealing::First(first) = dealing { first } else { 0 };
    order[first..].sort_by_key(|&phase| std::cmp::Reverse(phases[phase].bytes));
    for phase in order {
        let PhaseTiles { tiles, fills, bytes: each, least, most } = phases[phase];
        let most = most_tiles(tiles.div_ceil(blocks), fills, warps).min(most);
        for _ in least * blocks..tiles {
            let open = (0..blocks).filter(|&block| counts[phase][block] < most);
            let fewest = match dealing {
                Dealing::Largest => open.min_by_key(|&block| bytes[block]),
                Dealing::First(_) => open.rev().min_by_key(|&block| bytes[block]),
            };
            let Some(block) = fewest else { break };
            counts[phase][block] += 1;
            bytes[block] += each;
        }
    }
    counts.iter().map(|counts| starts(counts)).collect()
}

/// Bytes of a layer that the block reads which has most of them, where there is so much beside the tiles.
pub fn heaviest(phases: &[PhaseTiles], starts: &[Starts], beside: Beside, blocks: usize) -> usize {
    let of_block = |block: usize| {
        let tiles = |starts: &Starts| (starts[block + 1] - starts[block]) as usize;
        let bytes = phases.iter().zip(starts).map(|(phase, starts)| tiles(starts) * phase.bytes);
        beside.of_block(block, blocks) + bytes.sum::<usize>()
    };
    (0..blocks).map(of_block).max().unwrap_or(0)
}

/// The most tiles that take no more rounds of a block's warps than `even` tiles do.
fn most_tiles(even: usize, fills: usize, warps: usize) -> usize {
    let rounds = (even * fills).div_ceil(warps);
    (rounds * warps / fills.max(1)).max(even)
}

fn starts(counts: &[usize]) -> Starts {
    let mut next = 0;
    let mut starts = vec![0];
    starts.extend(counts.iter().map(|count| {
        next += *count as u32;
        next
    }));
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: usize = 132;
    const WARPS: usize = 12;

    fn tiles(rows: usize, columns: usize, tile_rows: usize) -> PhaseTiles {
        let (bytes, fills) = (tile_rows * columns * 2, tile_rows / 8 * columns.div_ceil(512));
        PhaseTiles { tiles: rows.div_ceil(tile_rows), fills, bytes, least: 0, most: usize::MAX }
    }

    fn layer(hidden: usize, attended: usize, kv: usize, intermediate: usize) -> [PhaseTiles; 4] {
        [
            tiles(attended + 2 * kv, hidden, 16),
            tiles(hidden, attended, 8),
            tiles(2 * intermediate, hidden, 16),
            tiles(hidden, intermediate, 8),
        ]
    }

    #[test]
    fn every_tile_has_one_block() {
        let beside = Beside { units: 2, bytes: 10_000 };
        for blocks in [1, 2, 7, 132, 170] {
            for phases in [layer(896, 896, 128, 4864), layer(64, 64, 64, 24), layer(2048, 2048, 512, 8192)] {
                for dealing in [Dealing::Largest, Dealing::First(2)] {
                    let shares = divide(&phases, beside, dealing, blocks, WARPS);
                    assert_eq!(shares.len(), phases.len());
                    for (phase, starts) in phases.iter().zip(&shares) {
                        assert_eq!(starts.len(), blocks + 1);
                        assert!(starts.is_sorted());
                        assert_eq!((starts[0], starts[blocks] as usize), (0, phase.tiles));
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_phases_or_the_largest_tiles_are_dealt_first() {
        let phase = |tiles, bytes| PhaseTiles { tiles, fills: 1, bytes, least: 0, most: 1 };
        let phases = [phase(2, 10), phase(2, 20)];
        let divide = |dealing| divide(&phases, Beside { units: 1, bytes: 5 }, dealing, 4, WARPS);
        assert_eq!(divide(Dealing::Largest), [[0, 1, 1, 1, 2], [0, 0, 1, 2, 2]]);
        assert_eq!(divide(Dealing::First(1)), [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]);
    }

    #[test]
    fn no_block_takes_more_rounds_than_an_even_share() {
        let phases = layer(896, 896, 128, 4864);
        let shares = divide(&phases, Beside { units: 2, bytes: 131_072 }, Dealing::Largest, BLOCKS, WARPS);
        for (phase, starts) in phases.iter().zip(&shares) {
            let rounds = |tiles: usize| (tiles * phase.fills).div_ceil(WARPS);
            let most = starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
            assert_eq!(rounds(most), rounds(phase.tiles.div_ceil(BLOCKS)));
        }
    }
}
