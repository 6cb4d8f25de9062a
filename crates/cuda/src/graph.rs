//! Launches recorded once and asked for again with one call.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use crate::batch::RepeatedShape;
use crate::device::{Context, Stream, driver_error};
use crate::error::CudaError;

/// Launches that were recorded from a stream, with their arguments.
#[derive(Debug)]
pub(crate) struct Graph {
    executable: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: a graph's handle may be used from any thread in whose context it lives, by one at a time: [`Stream::replay`]
// takes it exclusively.
unsafe impl Send for Graph {}

/// Graphs by the shape of the batch that they were recorded for, the one used last at the end.
#[derive(Debug, Default)]
pub(crate) struct Graphs {
    recorded: Vec<(RepeatedShape, Graph)>,
}

/// Graphs that a session keeps: more shapes than sequences that come and go need at a time.
const MOST_GRAPHS: usize = 64;

impl Graphs {
    /// Takes the graph for a shape out.
    pub fn take(&mut self, shape: RepeatedShape) -> Option<Graph> {
        let index = self.recorded.iter().rposition(|(recorded, _)| *recorded == shape)?;
        Some(self.recorded.remove(index).1)
    }

    /// Keeps a graph, in the place of the one that was not used for longest if there are many.
    pub fn keep(&mut self, shape: RepeatedShape, graph: Graph) {
        if self.recorded.len() == MOST_GRAPHS {
            self.recorded.remove(0);
        }
        self.recorded.push((shape, graph));
    }
}

/// A recording that has not been made executable.
struct Recording(sys::CUgraph);

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: returned by the driver, destroyed once; an executable graph does not need it.
        let _ = unsafe { sys::cuGraphDestroy(self.0) };
    }
}

impl Stream {
    /// Records what `launches` asks of this stream instead of running it. Copies between pageable memory and the device,
    /// allocations and waiting cannot be recorded.
    ///
    /// # Errors
    /// What `launches` returns, or the driver's refusal to record.
    pub(crate) fn record_launches<E: From<CudaError>>(
        &self,
        launches: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        let failed = |error| driver_error("recording a graph", error);
        // SAFETY: the stream lives. Other threads' calls are no concern of this recording.
        unsafe {
            result::stream::begin_capture(
                self.raw(),
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        }
        .map_err(failed)?;
        let launched = launches();
        // SAFETY: recording was begun above, and has to end whatever happened since.
        let recording = unsafe { result::stream::end_capture(self.raw()) };
        launched?;
        let recording = Recording(recording.map_err(failed)?);
        // SAFETY: the recording ended without an error.
        let executable = unsafe { result::graph::instantiate(recording.0, sys::CUgraphInstantiate_flags(0)) }
            .map_err(failed)?;
        Ok(Graph { executable, context: Arc::clone(self.context()) })
    }

    /// Asks for all launches of a graph, in their order.
    ///
    /// # Safety
    /// What [`Stream::launch`] demands, now, of every launch that was recorded: the same buffers live.
    ///
    /// # Errors
    /// Where the device is lost.
    pub(crate) unsafe fn replay(&self, graph: &mut Graph) -> Result<(), CudaError> {
        // SAFETY: graph and stream live in the same context; the caller answers for the launches.
        unsafe { result::graph::launch(graph.executable, self.raw()) }
            .map_err(|error| driver_error("launching a graph", error))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made once, destroyed once; the driver lets work that is under way end.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}
