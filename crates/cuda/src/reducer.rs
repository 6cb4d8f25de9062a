//! Reduces rows of logits where they are, and brings the little that samplers need of them to the host.
//!
//! Requests and results lie in page-locked memory that kernels read and write themselves, as they are too small for a
//! copy to pay. What the kernels have no room for is left to the definition in `mantissa_ops::reduction`.

use std::mem::offset_of;

use mantissa_ops::batch::Limits;
use mantissa_ops::plan::Plan;
use mantissa_ops::reduction::{RankKey, Reduced, Request, Wish, inverse};

use crate::device::{Device, DeviceBuffer, HostBuffer};
use crate::error::CudaError;
use crate::families::sampling::{self, Args, Found, Kernel, MOST_LOGITS, MOST_RANKED};
use crate::values::Place;

/// Tokens seen for each row, on average over the rows of a batch.
const SEEN_PER_ROW: usize = 4096;

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
    wished_sums: usize,
    ranked: usize,
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
            wished_sums: host.add::<f64>(sums),
            ranked: host.add::<u64>(each(MOST_RANKED)),
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
            Wish::Best { count } | Wish::Nucleus { count, .. } => count <= MOST_RANKED,
            Wish::Draw { .. } => true,
        };
        let seen: usize =
            requests.iter().filter_map(|request| request.penalties).map(|all| all.seen.len()).sum();
        let Layout { rows, .. } = self.layout;
        requests.len() <= rows && seen <= rows * SEEN_PER_ROW && requests.iter().all(ranked)
    }

    /// Writes the requests, for which there must be room, and gives the kernels to launch, in order, with the arguments of
    /// all of them. `scratch` holds [`RowsAndLogits::device_bytes`] bytes; no launch of earlier requests may be under way.
    pub fn prepare(
        &mut self,
        requests: &[Request<'_>],
        logits: Place,
        scratch: &DeviceBuffer,
    ) -> (Vec<Kernel>, Args) {
        self.write(requests);
        let kernels = kernels(requests);
        let layout = self.layout;
        let device = |part: usize| scratch.address() + part as u64;
        let host = |part: usize| self.host.address() + part as u64;
        let plain = kernels == [Kernel::Largest, Kernel::OwnSums];
        let args = Args {
            logits: logits.address,
            host_requests: if plain { 0 } else { host(layout.host_requests) },
            requests: device(layout.requests),
            seen: host(layout.seen),
            saved: device(layout.saved),
            groups: device(layout.groups),
            bests: device(layout.bests),
            sums: device(layout.sums),
            found: host(layout.found),
            own_sums: host(layout.own_sums),
            wished_sums: host(layout.wished_sums),
            ranked: host(layout.ranked),
            unpenalised: host(layout.unpenalised),
            vocabulary: layout.vocabulary as u32,
            stride: logits.stride,
            spans: sampling::spans(layout.vocabulary) as u32,
            chunks: sampling::chunks(layout.vocabulary) as u32,
        };
        (kernels, args)
    }

    fn write(&mut self, requests: &[Request<'_>]) {
        let mut seen = 0;
        for (row, request) in requests.iter().enumerate() {
            let first = seen;
            for token in request.penalties.iter().flat_map(|penalties| penalties.seen) {
                let told = sampling::Seen { token: token.token, generated: token.generated };
                self.put(self.layout.seen, seen, told);
                seen += 1;
            }
            self.put(self.layout.host_requests, row, told(request, first..seen));
        }
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

    /// The address of the key of the token that a request which decides leads to.
    pub fn decided(&self, row: usize, request: &Request<'_>) -> u64 {
        let field = match request.wish {
            Wish::Draw { .. } => offset_of!(Found, drawn),
            Wish::Best { .. } | Wish::Nucleus { .. } => offset_of!(Found, largest),
        };
        self.host.address() + (self.layout.found + row * size_of::<Found>() + field) as u64
    }

    /// What the kernels found of row `row`, which is complete where this says so: a row that is not finite, or has more
    /// candidates than there is room for, is left to others. `first_seen` counts the tokens seen of the rows before.
    pub fn read(
        &self,
        row: usize,
        request: &Request<'_>,
        first_seen: usize,
        reduced: &mut Reduced,
    ) -> Completeness {
        let layout = &self.layout;
        let [found] = self.numbers::<Found>(layout.found, row, 1) else { return Completeness::Missing };
        if found.largest == 0 {
            return Completeness::Missing;
        }
        let chunks = sampling::chunks(layout.vocabulary);
        let sum = |part| self.numbers::<f64>(part, row * chunks, chunks).iter().sum::<f64>();
        reduced.not_finite = 0;
        reduced.largest = RankKey(found.largest).logit();
        reduced.sum = sum(layout.own_sums);
        reduced.unpenalised.clear();
        if let Some(penalties) = request.penalties {
            let before = self.numbers::<f32>(layout.unpenalised, first_seen, penalties.seen.len());
            reduced.unpenalised.extend_from_slice(before);
        }
        reduced.best.clear();
        match (request.wish, request.penalties) {
            (Wish::Best { count: 1 }, None) => reduced.best.push(RankKey(found.largest)),
            (Wish::Draw { .. }, _) => reduced.best.push(RankKey(found.drawn)),
            (Wish::Best { .. } | Wish::Nucleus { .. }, _) => {
                if found.ranked as usize > MOST_RANKED {
                    return Completeness::Missing;
                }
                let ranked = self.numbers::<u64>(layout.ranked, row * MOST_RANKED, found.ranked as usize);
                reduced.best.extend(ranked.iter().map(|&key| RankKey(key)));
            }
        }
        if let Wish::Nucleus { .. } = request.wish {
            reduced.wished_sum = sum(layout.wished_sums);
        }
        Completeness::Complete
    }
}

/// Whether the kernels found all that was asked of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completeness {
    Complete,
    Missing,
}

/// Whether a request wants more than the largest logit and the sum of its row.
fn wishes_more(request: &Request<'_>) -> bool {
    request.wish != Wish::Best { count: 1 } || request.penalties.is_some()
}

/// The kernels that serve the requests, in order. After [`Kernel::Penalise`] there is [`Kernel::Restore`] to come, for
/// which no one needs to wait.
fn kernels(requests: &[Request<'_>]) -> Vec<Kernel> {
    let any = |test: fn(&Request<'_>) -> bool| requests.iter().any(test);
    let penalised = any(|request| request.penalties.is_some());
    let sums = any(|request| !matches!(request.wish, Wish::Best { .. }));
    let ranks = any(|request| !matches!(request.wish, Wish::Draw { .. }) && wishes_more(request));
    let draws = any(|request| matches!(request.wish, Wish::Draw { .. }));
    let order = [
        (true, Kernel::Largest),
        (true, Kernel::OwnSums),
        (penalised, Kernel::Penalise),
        (penalised, Kernel::Largest),
        (sums, Kernel::WishedSums),
        (ranks, Kernel::Rank),
        (draws, Kernel::Draw),
    ];
    order.into_iter().filter_map(|(wanted, kernel)| wanted.then_some(kernel)).collect()
}

/// A request as kernels take it, with the range of its tokens seen.
fn told(request: &Request<'_>, seen: std::ops::Range<usize>) -> sampling::Request {
    let (uniform, temperature, floor, sums, count) = match request.wish {
        Wish::Best { count } => (0.0, 1.0, 0.0, 0, if wishes_more(request) { count } else { 0 }),
        Wish::Nucleus { count, temperature } => (0.0, temperature, 0.0, 1, count),
        Wish::Draw { temperature, floor, uniform } => (uniform, temperature, floor, 2, 0),
    };
    let (repetition, frequency, presence) = match request.penalties {
        Some(penalties) => (penalties.repetition, penalties.frequency, penalties.presence),
        None => (1.0, 0.0, 0.0),
    };
    sampling::Request {
        uniform,
        inverse_temperature: inverse(temperature),
        floor,
        sums,
        count: count as u32,
        first_seen: seen.start as u32,
        end_seen: seen.end as u32,
        repetition,
        frequency,
        presence,
        unused: 0,
    }
}

#[cfg(test)]
mod tests {
    use mantissa_ops::reduction::{Penalties, Seen};

    use super::*;

    const DRAW: Wish = Wish::Draw { temperature: 0.5, floor: 0.1, uniform: 0.25 };
    const NUCLEUS: Wish = Wish::Nucleus { count: 7, temperature: 2.0 };
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
        use Kernel::{Draw, Largest, OwnSums, Penalise, Rank, WishedSums};
        let best = |count| plain(Wish::Best { count });
        assert_eq!(kernels(&[best(1), best(1)]), [Largest, OwnSums]);
        assert_eq!(kernels(&[best(1), best(2)]), [Largest, OwnSums, Rank]);
        assert_eq!(kernels(&[plain(NUCLEUS)]), [Largest, OwnSums, WishedSums, Rank]);
        assert_eq!(kernels(&[plain(DRAW)]), [Largest, OwnSums, WishedSums, Draw]);
        let greedy = penalised(Wish::Best { count: 1 });
        assert_eq!(kernels(&[greedy]), [Largest, OwnSums, Penalise, Largest, Rank]);
    }

    #[test]
    fn requests_become_what_kernels_take() {
        let draw = told(&penalised(DRAW), 5..7);
        assert_eq!((draw.uniform, draw.inverse_temperature, draw.floor), (0.25, 2.0, 0.1));
        assert_eq!((draw.sums, draw.count, draw.first_seen, draw.end_seen), (2, 0, 5, 7));
        assert_eq!((draw.repetition, draw.frequency, draw.presence), (1.5, 0.25, 0.5));
        let nucleus = told(&plain(NUCLEUS), 7..7);
        assert_eq!((nucleus.inverse_temperature, nucleus.sums, nucleus.count), (0.5, 1, 7));
        // Known without ranking, unless penalties change it.
        assert_eq!(told(&plain(Wish::Best { count: 1 }), 0..0).count, 0);
        assert_eq!(told(&penalised(Wish::Best { count: 1 }), 0..2).count, 1);
    }

    #[test]
    fn parts_do_not_overlap() {
        let shape = RowsAndLogits { rows: 3, vocabulary: 5000 };
        let layout = Layout::new(shape);
        let device =
            [layout.requests, layout.saved, layout.groups, layout.bests, layout.sums, layout.device_end];
        let sizes = [3 * 48, 3 * SEEN_PER_ROW * 8, 3 * 2 * 128 * 8, 3 * 2 * 8, 3 * 5 * 8];
        assert!(device.windows(2).zip(sizes).all(|(ends, size)| ends[1] - ends[0] >= size));
        assert!(device.iter().all(|start| start % 256 == 0));
        assert_eq!(shape.device_bytes(), layout.device_end);
        assert_eq!(RowsAndLogits { rows: usize::MAX, vocabulary: 5000 }.device_bytes(), usize::MAX);
    }
}
