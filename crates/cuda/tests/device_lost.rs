//! A device that is lost for good in the middle of a session: every call says so, no old number comes back, and nothing
//! crashes. In a process of its own, whose device nothing else can use afterwards. Without a device or NVRTC the test says
//! why it was skipped.

#[path = "gpu/backend.rs"]
mod gpu;
#[path = "gpu/selftest.rs"]
mod selftest;

use mantissa_cuda::device::Device;
use mantissa_cuda::kernel::Launch;
use mantissa_cuda::{CudaBackend, CudaError, CudaOptions};
use mantissa_numerics::Format;
use mantissa_numerics::policy::Preset;
use mantissa_ops::backend::{LoadOptions, NoProgress, OverflowRule, Session};
use mantissa_ops::conformance::data::MemorySource;
use mantissa_ops::conformance::or_skip;
use mantissa_ops::{Backend, Batch, Limits, Plan, ProgramBuilder, SequenceRows, ValueId};

const VOCABULARY: usize = 64;
const HIDDEN: usize = 32;

/// A session that looks tokens up and multiplies them with the same matrix, and its first value.
fn session(backend: &CudaBackend) -> (Box<dyn Session>, ValueId) {
    let mut builder = ProgramBuilder::new("lost", 64);
    let embedded = builder.embedding("table", VOCABULARY, HIDDEN);
    builder.logits("table", embedded, VOCABULARY);
    let plan = Plan::resolve(builder.finish(), Preset::F32.policy(), backend).expect("a plan");
    let numbers: Vec<f32> = (0..VOCABULARY * HIDDEN).map(|index| (index % 7) as f32 - 3.0).collect();
    let mut source = MemorySource::default();
    source.add("table", &[VOCABULARY, HIDDEN], Format::F32, &numbers);
    let limits = Limits { rows: 4, outputs: 4, sequences: 1, pages: 4, page_size: 16, context: 64 };
    let options = LoadOptions { limits, overflow: OverflowRule::Refuse };
    (backend.prepare(plan, &source, &options, &NoProgress).expect("a session"), embedded)
}

fn run(session: &mut dyn Session) -> Result<Vec<f32>, String> {
    let sequences = [SequenceRows { rows: 0..2, block_table: &[], rope_set: 0 }];
    let batch = Batch { tokens: &[3, 5], positions: &[0, 1], sequences: &sequences, outputs: &[0, 1] };
    session.run(&batch).map_err(|error| error.to_string())?;
    session.logits().map(<[f32]>::to_vec).map_err(|error| error.to_string())
}

/// Loses the device's context, which all of the process share.
fn lose(device: &Device) -> CudaError {
    let nvrtc = selftest::nvrtc().expect("it was there before");
    let kernel = selftest::load(device, &nvrtc, "lose_device", Format::F16);
    let stream = device.stream().expect("a stream");
    let memory = device.allocate(256, "words").expect("memory");
    let args = selftest::Args { from: memory.address(), to: memory.address(), count: 1, unused: 0 };
    let launch = Launch { grid: [1, 1, 1], block: 32, shared: 0 };
    // SAFETY: `Args` mirrors the kernel's. It writes where nothing is, as it is meant to: the hardware stops it there.
    unsafe { stream.launch(&kernel, launch, &args) }.expect("launch");
    stream.synchronize().expect_err("an invalid address was written")
}

#[test]
fn after_a_device_is_lost_every_call_says_so_and_no_old_number_comes_back() {
    let Some(backend) = or_skip(gpu::open(CudaOptions::default())) else { return };
    let (mut session, embedded) = session(&backend);
    let logits = run(session.as_mut()).expect("a run");
    assert!(logits.len() == 2 * VOCABULARY && logits.iter().all(|number| number.is_finite()));
    let values = session.read(embedded);
    assert!(values.len() == 2 * HIDDEN && values.iter().all(|number| number.is_finite()));

    let device = Device::open(0).expect("it is there");
    let error = lose(&device);
    assert!(matches!(error, CudaError::DeviceLost { .. }), "{error}");

    let fetched = session.logits().map(<[f32]>::to_vec);
    assert!(fetched.as_ref().is_ok_and(|kept| *kept == logits) || fetched.is_err(), "{fetched:?}");
    for attempt in 0..2 {
        let error = run(session.as_mut()).expect_err("the device is lost");
        assert!(error.contains("the device is lost"), "attempt {attempt}: {error}");
        let error = session.logits().expect_err("there are none").to_string();
        assert!(error.contains("the device is lost"), "attempt {attempt}: {error}");
        assert!(session.read(embedded).iter().all(|number| number.is_nan()), "an old number");
    }
    let error = device.allocate(1 << 20, "more").expect_err("the device is lost");
    assert!(matches!(error, CudaError::DeviceLost { .. }), "{error}");
    assert!(matches!(device.stream().err(), Some(CudaError::DeviceLost { .. })));
    drop(session);
    drop(backend);
}
