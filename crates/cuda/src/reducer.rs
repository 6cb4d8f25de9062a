//! Reduces rows of logits where they are, and brings the little that samplers need of them to the host.
//!
//! Requests and results lie in page-locked memory that kernels read and write themselves, as they are too small for a
//! copy to pay. What the kernels have no room for is left to the definition in `mantissa_ops::reduction`.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use mantissa_ops::batch::Limits;
use mantissa_ops::plan::Plan;
use mantissa_ops::reduction::{Cuts, RankKey, Reduced, Request, Whole, Wish, inverse};

use crate::batch::NextBatch;
use crate::device::{Device, DeviceBuffer, HostBuffer};
use crate::error::CudaError;
use crate::families::sampling::{self, Args, Found, Kernel, MOST_LOGITS, MOST_RANKED};
use crate::kernel::Launch;
use crate::values::Place;

/// Tokens seen for each row, on average over the rows of a batch.
const SEEN_PER_ROW: usize = 4096;

/// What lies in the place of a result that has not come: no key is it, as its logit would not be finite, and neither the
/// whole nor a half of it is a finite number.
const PENDING: u64 = 0xffff_ffff_ffff_fffe;

/// Parts of one buffer, each at a multiple of 256 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    end: usize,
}

impl Parts {
    /// The offset of the next part.
    fn add<T>(&mut self, count: usize) -> usize {
        let start = self.end;
        let bytes = size_of::<T>().saturating_mul(count).saturating_add(255) / 256 * 256;
        self.end = start.saturating_add(bytes);
        start
    }
}

/// Where the parts of both buffers begin.
#[derive(Clone, Copy, Debug)]
struct Layout {
    rows: usize,
    vocabulary: usize,
    // On the device.
    requests: usize,
    saved: usize,
    groups: usize,
    bests: usize,
    sums: usize,
    device_end: usize,
    // On the host.
    host_requests: usize,
    seen: usize,
    found: usize,
    own_sums: usize,
    unpenalised: usize,
    host_end: usize,
}

impl Layout {
    fn new(RowsAndLogits { rows, vocabulary }: RowsAndLogits) -> Layout {
        let (mut device, mut host) = (Parts::default(), Parts::default());
        // Limits are not checked yet where sizes are asked for: those beyond all memory stay beyond it.
        let each = |count: usize| rows.saturating_mul(count);
        let (sums, seen) = (each(sampling::chunks(vocabulary)), each(SEEN_PER_ROW));
        Layout {
            rows,
            vocabulary,
            requests: device.add::<sampling::Request>(rows),
            saved: device.add::<sampling::Seen>(seen),
            groups: device.add::<u64>(each(sampling::groups(vocabulary))),
            bests: device.add::<u64>(each(sampling::spans(vocabulary))),
            sums: device.add::<f64>(sums),
            device_end: device.end,
            host_requests: host.add::<sampling::Request>(rows),
            seen: host.add::<sampling::Seen>(seen),
            found: host.add::<Found>(rows),
            own_sums: host.add::<f64>(sums),
            unpenalised: host.add::<f32>(seen),
            host_end: host.end,
        }
    }
}

/// The rows and logits that a session reduces at once, of which each sequence has one row at most; nothing where rows are
/// longer than kernels take.
pub(crate) fn shape(plan: &Plan, limits: &Limits) -> Option<RowsAndLogits> {
    let vocabulary = plan.program.value(plan.program.logits()?).width;
    let rows = limits.outputs.min(limits.sequences);
    (rows > 0 && (1..=MOST_LOGITS).contains(&vocabulary)).then_some(RowsAndLogits { rows, vocabulary })
}

/// Rows of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowsAndLogits {
    rows: usize,
    vocabulary: usize,
}

impl RowsAndLogits {
    /// Bytes of the device that reducing them takes.
    pub fn device_bytes(self) -> usize {
        Layout::new(self).device_end
    }
}

/// What requests wish for beside the best token of a row and its sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    penalties: bool,
    sums: bool,
    ranks: bool,
    draws: bool,
}

impl Wishes {
    pub fn of(requests: &[Request<'_>]) -> Wishes {
        let any = |test: fn(&Request<'_>) -> bool| requests.iter().any(test);
        Wishes {
            penalties: any(|request| request.penalties.is_some()),
            sums: any(|request| told(request, 0..0).sums > 0),
            ranks: any(|request| told(request, 0..0).count > 0),
            draws: any(|request| matches!(request.wish, Wish::Draw { .. })),
        }
    }

    /// The kernels that serve the requests, in order; `bests` says whether best keys are there already. After
    /// [`Kernel::Penalise`] there is [`Kernel::Restore`] to come, for which no one needs to wait.
    fn kernels(self, bests: bool) -> Vec<Kernel> {
        if bests && self == Wishes::default() {
            return vec![Kernel::FirstSums];
        }
        let order = [
            (true, Kernel::Largest),
            (true, Kernel::OwnSums),
            (self.penalties, Kernel::Penalise),
            (self.penalties, Kernel::Largest),
            (self.sums, Kernel::WishedSums),
            (self.ranks, Kernel::Rank),
            (self.draws, Kernel::Draw),
        ];
        order.into_iter().filter_map(|(wanted, kernel)| wanted.then_some(kernel)).collect()
    }
}

/// Best keys of a row of logits, which the kernel that computed them has left on the device: one for each share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bests {
    pub address: u64,
    pub count: u32,
}

/// What is to be launched.
#[derive(Debug)]
pub(crate) struct Launches {
    /// The kernels, in order.
    pub kernels: Vec<(Kernel, Launch)>,
    /// The arguments of all of them.
    pub args: Args,
}

/// Reduces the rows of a session.
#[derive(Debug)]
pub(crate) struct Reducer {
    layout: Layout,
    host: HostBuffer,
}

impl Reducer {
    pub fn new(device: &Device, shape: RowsAndLogits) -> Result<Reducer, CudaError> {
        let layout = Layout::new(shape);
        let host = device.allocate_host(layout.host_end, "results of sampling")?;
        Ok(Reducer { layout, host })
    }

    /// Whether there is room for these requests.
    pub fn has_room(&self, requests: &[Request<'_>]) -> bool {
        let ranked = |request: &Request<'_>| match request.wish {
            Wish::DrawFromBest(Cuts { count, .. }) => count <= MOST_RANKED,
            Wish::Best | Wish::Draw { .. } => true,
        };
        let seen: usize =
            requests.iter().filter_map(|request| request.penalties).map(|all| all.seen.len()).sum();
        let Layout { rows, .. } = self.layout;
        requests.len() <= rows && seen <= rows * SEEN_PER_ROW && requests.iter().all(ranked)
    }

    /// What to launch for so many requests with these wishes, after they were [written](Reducer::write). `scratch` holds
    /// [`RowsAndLogits::device_bytes`] bytes; `bests` are those of the one row that there is. Where a run starts behind, its
    /// batch is brought to the device, with the tokens that were chosen.
    pub fn launches(
        &self,
        rows: usize,
        wishes: Wishes,
        logits: Place,
        scratch: &DeviceBuffer,
        bests: Option<Bests>,
        next: Option<NextBatch>,
    ) -> Launches {
        let next = next.unwrap_or_default();
        let layout = self.layout;
        let device = |part: usize| scratch.address() + part as u64;
        let host = |part: usize| self.host.address() + part as u64;
        let plain = wishes == Wishes::default();
        let bests = bests.filter(|_| plain);
        let spans = Bests { address: device(layout.bests), count: sampling::spans(layout.vocabulary) as u32 };
        let Bests { address, count } = bests.unwrap_or(spans);
        let args = Args {
            logits: logits.address,
            host_requests: if plain { 0 } else { host(layout.host_requests) },
            requests: device(layout.requests),
            seen: host(layout.seen),
            saved: device(layout.saved),
            groups: device(layout.groups),
            bests: address,
            sums: device(layout.sums),
            found: host(layout.found),
            own_sums: host(layout.own_sums),
            unpenalised: host(layout.unpenalised),
            vocabulary: layout.vocabulary as u32,
            stride: logits.stride,
            spans: count,
            chunks: sampling::chunks(layout.vocabulary) as u32,
            next_host: next.host,
            next_batch: next.device,
            next_first: next.first,
            next_end: next.end,
        };
        let kernels = wishes.kernels(bests.is_some()).into_iter();
        let mut kernels: Vec<_> =
            kernels.map(|kernel| (kernel, kernel.launch_shape(rows, layout.vocabulary))).collect();
        if let (Some((Kernel::Largest, largest)), true) = (kernels.first_mut(), next.device != 0) {
            // A block beyond the spans brings the batch.
            largest.grid[0] += 1;
        }
        Launches { kernels, args }
    }

    /// Writes requests, for which there must be room. All results of earlier ones must have come.
    pub fn write(&mut self, requests: &[Request<'_>]) {
        let mut seen = 0;
        for (row, request) in requests.iter().enumerate() {
            let first = seen;
            for token in request.penalties.iter().flat_map(|penalties| penalties.seen) {
                let told = sampling::Seen { token: token.token, generated: token.generated };
                self.put(self.layout.seen, seen, told);
                seen += 1;
            }
            self.put(self.layout.host_requests, row, told(request, first..seen));
            self.put(self.layout.found, row, Found { largest: PENDING, chosen: PENDING });
        }
        let sums = requests.len() * sampling::chunks(self.layout.vocabulary);
        (0..sums).for_each(|sum| self.put(self.layout.own_sums, sum, PENDING));
        (0..seen.div_ceil(2)).for_each(|pair| self.put(self.layout.unpenalised, pair, PENDING));
    }

    /// Whether all results of the requests that were written have come, but of a row that is not finite no more than that.
    pub fn is_complete(&self, requests: &[Request<'_>]) -> bool {
        let mut first_seen = 0;
        let complete = requests.iter().enumerate().all(|(row, request)| {
            let seen = first_seen..first_seen + request.penalties.map_or(0, |penalties| penalties.seen.len());
            first_seen = seen.end;
            self.row_is_complete(row, request, seen)
        });
        fence(Ordering::Acquire);
        complete
    }

    fn row_is_complete(&self, row: usize, request: &Request<'_>, mut seen: Range<usize>) -> bool {
        let Layout { found, own_sums, unpenalised, vocabulary, .. } = self.layout;
        let chunks = sampling::chunks(vocabulary);
        let has_come = |part: usize, index: usize| self.watched(part, index) != PENDING;
        // Half of a word.
        let logit_has_come = |index: usize| {
            (self.watched(unpenalised, index / 2) ^ PENDING) >> (index % 2 * 32) & u64::from(u32::MAX) != 0
        };
        match self.watched(found, 2 * row) {
            PENDING => false,
            0 => true,
            _ => {
                (!wishes_more(request) || has_come(found, 2 * row + 1))
                    && (row * chunks..(row + 1) * chunks).all(|sum| has_come(own_sums, sum))
                    && seen.all(logit_has_come)
            }
        }
    }

    /// A word of 8 bytes of a part of the host's buffer, which kernels may be writing.
    fn watched(&self, part: usize, index: usize) -> u64 {
        let words = self.host.watched(part + index * size_of::<u64>(), 1);
        words.first().map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Number `index` of a part of the host's buffer.
    fn put<T: bytemuck::NoUninit>(&mut self, part: usize, index: usize, value: T) {
        let at = part + index * size_of::<T>();
        self.host[at..at + size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
    }

    /// Numbers of a part of the host's buffer.
    fn numbers<T: bytemuck::AnyBitPattern>(&self, part: usize, first: usize, count: usize) -> &[T] {
        let at = part + first * size_of::<T>();
        // Parts are aligned, and the length is a whole number of `T`.
        bytemuck::try_cast_slice(&self.host[at..at + count * size_of::<T>()]).unwrap_or_default()
    }

    /// What the kernels found of row `row`. `first_seen` counts the tokens seen of the rows before.
    pub fn read(
        &self,
        row: usize,
        request: &Request<'_>,
        first_seen: usize,
        reduced: &mut Reduced,
    ) -> Outcome {
        let layout = &self.layout;
        reduced.chosen = None;
        let [found] = self.numbers::<Found>(layout.found, row, 1) else { return Outcome::Undecided };
        if found.largest == 0 {
            return Outcome::NotFinite;
        }
        let chunks = sampling::chunks(layout.vocabulary);
        reduced.not_finite = 0;
        reduced.largest = RankKey(found.largest).logit();
        reduced.sum = self.numbers::<f64>(layout.own_sums, row * chunks, chunks).iter().sum();
        reduced.unpenalised.clear();
        if let Some(penalties) = request.penalties {
            let before = self.numbers::<f32>(layout.unpenalised, first_seen, penalties.seen.len());
            reduced.unpenalised.extend_from_slice(before);
        }
        match if wishes_more(request) { found.chosen } else { found.largest } {
            u64::MAX => Outcome::Undecided,
            key => {
                reduced.chosen = Some(RankKey(key));
                Outcome::Chosen
            }
        }
    }
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All that was asked for was found.
    Chosen,
    /// No token was: top-p keeps more than are ranked, or there was no room for all candidates. Nothing else is missing.
    Undecided,
    /// A logit is not finite, and nothing else is known.
    NotFinite,
}

/// Whether a request wants more than the best token and the sum of its row.
fn wishes_more(request: &Request<'_>) -> bool {
    request.wish != Wish::Best || request.penalties.is_some()
}

/// A request as kernels take it, with the range of its tokens seen.
fn told(request: &Request<'_>, seen: Range<usize>) -> sampling::Request {
    let chosen = match request.wish {
        // A draw from one token ends in it.
        Wish::Best => sampling::Request {
            inverse_temperature: 1.0,
            count: u32::from(wishes_more(request)),
            top_p: 1.0,
            ..sampling::Request::default()
        },
        Wish::Draw { temperature, floor, uniform } => sampling::Request {
            uniform,
            inverse_temperature: inverse(temperature),
            floor,
            sums: 2,
            ..sampling::Request::default()
        },
        Wish::DrawFromBest(cuts) => sampling::Request {
            uniform: cuts.uniform,
            inverse_temperature: inverse(cuts.temperature),
            sums: u32::from(cuts.whole == Whole::All),
            count: cuts.count as u32,
            top_p: cuts.top_p,
            min_p: cuts.min_p,
            ..sampling::Request::default()
        },
    };
    let (repetition, frequency, presence) = match request.penalties {
        Some(penalties) => (penalties.repetition, penalties.frequency, penalties.presence),
        None => (1.0, 0.0, 0.0),
    };
    let (first_seen, end_seen) = (seen.start as u32, seen.end as u32);
    sampling::Request { first_seen, end_seen, repetition, frequency, presence, ..chosen }
}

#[cfg(test)]
mod tests {
    use mantissa_ops::reduction::{Penalties, Seen};

    use super::*;

    const DRAW: Wish = Wish::Draw { temperature: 0.5, floor: 0.1, uniform: 0.25 };
    const NUCLEUS: Wish = Wish::DrawFromBest(Cuts {
        count: 7,
        temperature: 2.0,
        top_p: 0.75,
        whole: Whole::All,
        min_p: 0.125,
        uniform: 0.5,
    });
    const TOP_K: Wish = Wish::DrawFromBest(Cuts {
        count: 3,
        temperature: 1.0,
        top_p: 1.0,
        whole: Whole::Ranked,
        min_p: 0.0,
        uniform: 0.5,
    });
    const SEEN: [Seen; 2] = [Seen { token: 3, generated: 0 }, Seen { token: 9, generated: 4 }];

    fn plain(wish: Wish) -> Request<'static> {
        Request { penalties: None, wish }
    }

    fn penalised(wish: Wish) -> Request<'static> {
        let penalties = Penalties { repetition: 1.5, frequency: 0.25, presence: 0.5, seen: &SEEN };
        Request { penalties: Some(penalties), wish }
    }

    #[test]
    fn only_what_is_asked_for_is_launched() {
        use Kernel::{Draw, FirstSums, Largest, OwnSums, Penalise, Rank, WishedSums};
        let kernels = |requests: &[Request<'_>]| Wishes::of(requests).kernels(false);
        assert_eq!(kernels(&[plain(Wish::Best), plain(Wish::Best)]), [Largest, OwnSums]);
        assert_eq!(kernels(&[plain(Wish::Best), plain(TOP_K)]), [Largest, OwnSums, Rank]);
        assert_eq!(kernels(&[plain(NUCLEUS)]), [Largest, OwnSums, WishedSums, Rank]);
        assert_eq!(kernels(&[plain(DRAW)]), [Largest, OwnSums, WishedSums, Draw]);
        assert_eq!(kernels(&[penalised(Wish::Best)]), [Largest, OwnSums, Penalise, Largest, Rank]);
        // Best keys that are there already do only where nothing else is asked for.
        let behind_bests = |request: Request<'_>| Wishes::of(&[request]).kernels(true);
        assert_eq!(behind_bests(plain(Wish::Best)), [FirstSums]);
        for request in [plain(TOP_K), plain(NUCLEUS), plain(DRAW), penalised(Wish::Best)] {
            assert_eq!(behind_bests(request), Wishes::of(&[request]).kernels(false));
        }
    }

    #[test]
    fn requests_become_what_kernels_take() {
        let draw = told(&penalised(DRAW), 5..7);
        assert_eq!((draw.uniform, draw.inverse_temperature, draw.floor), (0.25, 2.0, 0.1));
        assert_eq!((draw.sums, draw.count, draw.first_seen, draw.end_seen), (2, 0, 5, 7));
        assert_eq!((draw.repetition, draw.frequency, draw.presence), (1.5, 0.25, 0.5));
        let nucleus = told(&plain(NUCLEUS), 7..7);
        assert_eq!((nucleus.inverse_temperature, nucleus.sums, nucleus.count), (0.5, 1, 7));
        assert_eq!((nucleus.top_p, nucleus.min_p, nucleus.uniform), (0.75, 0.125, 0.5));
        assert_eq!((told(&plain(TOP_K), 0..0).sums, told(&plain(TOP_K), 0..0).count), (0, 3));
        // Known without ranking, unless penalties change it.
        assert_eq!(told(&plain(Wish::Best), 0..0).count, 0);
        assert_eq!(told(&penalised(Wish::Best), 0..2).count, 1);
    }

    #[test]
    fn parts_do_not_overlap() {
        let shape = RowsAndLogits { rows: 3, vocabulary: 5000 };
        let layout = Layout::new(shape);
        let device =
            [layout.requests, layout.saved, layout.groups, layout.bests, layout.sums, layout.device_end];
        let sizes = [3 * 56, 3 * SEEN_PER_ROW * 8, 3 * 2 * 128 * 8, 3 * 2 * 8, 3 * 5 * 8];
        assert!(device.windows(2).zip(sizes).all(|(ends, size)| ends[1] - ends[0] >= size));
        assert!(device.iter().all(|start| start % 256 == 0));
        assert_eq!(shape.device_bytes(), layout.device_end);
        assert_eq!(RowsAndLogits { rows: usize::MAX, vocabulary: 5000 }.device_bytes(), usize::MAX);
    }
}
