//! Launches recorded once and asked for again with one call.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::batch::RepeatedShape;
use crate::device::{Context, Kernel, Stream, driver_error};
use crate::error::CudaError;
use crate::kernel::Launch;
use crate::reducer::{Bests, Wishes};
use crate::stream::{Blocks, Starts, refused};

/// Launches that were recorded from a stream, with their arguments.
#[derive(Debug)]
pub(crate) struct Graph {
    executable: sys::CUgraphExec,
    kernels: usize,
    context: Arc<Context>,
}

impl Graph {
    /// How many kernels it launches.
    pub fn kernels(&self) -> usize {
        self.kernels
    }
}

// SAFETY: a graph's handle may be used from any thread in whose context it lives, by one at a time: [`Stream::replay`]
// takes it exclusively.
unsafe impl Send for Graph {}

/// What decides on the launches of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// That of the batch that is run.
    pub shape: RepeatedShape,
    /// What chooses its tokens in front of the run, if anything does.
    pub choice: Option<Choice>,
}

/// What decides on the launches of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Of all requests.
    pub wishes: Wishes,
    /// Best keys that the run before has left.
    pub bests: Option<Bests>,
}

/// Graphs by their content, the one used last at the end.
#[derive(Debug, Default)]
pub(crate) struct Graphs {
    recorded: Vec<(Content, Graph)>,
}

/// Shapes for which a session keeps graphs: more than sequences that come and go need at a time.
pub(crate) const MOST_SHAPES: usize = 64;
/// Behind nothing and behind a choice, or behind two choices.
const MOST_GRAPHS: usize = 2 * MOST_SHAPES;

impl Graphs {
    /// Takes the graph of this content out.
    pub fn take(&mut self, content: Content) -> Option<Graph> {
        let index = self.recorded.iter().rposition(|(recorded, _)| *recorded == content)?;
        Some(self.recorded.remove(index).1)
    }

    /// Lets the graph go that was not used for longest if there are many, before another one takes its memory.
    pub fn make_room(&mut self) {
        if self.recorded.len() >= MOST_GRAPHS {
            self.recorded.remove(0);
        }
    }

    /// Keeps a graph.
    pub fn keep(&mut self, content: Content, graph: Graph) {
        self.recorded.push((content, graph));
    }
}

/// A graph in the making: kernels one after another.
#[derive(Debug)]
pub(crate) struct Recorder {
    graph: sys::CUgraph,
    last: Option<sys::CUgraphNode>,
    kernels: usize,
    /// How kernels start, and how the next one does.
    starts: Starts,
    next_starts: Starts,
    context: Arc<Context>,
}

impl Recorder {
    /// An empty one, for a stream on the same device.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn new(stream: &Stream) -> Result<Recorder, CudaError> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the one handle that is written.
        unsafe { sys::cuGraphCreate(&raw mut graph, 0) }.result().map_err(failed)?;
        let starts = stream.starts();
        let context = Arc::clone(stream.context());
        Ok(Recorder { graph, last: None, kernels: 0, starts, next_starts: starts, context })
    }

    /// Has the next kernel start when those before it have ended, and with it all that follow.
    pub fn in_turn(&mut self) {
        self.next_starts = Starts::InTurn;
    }

    /// Adds a kernel behind those added before; it starts as [`Stream::launch_as`] lets it.
    ///
    /// # Safety
    /// What [`Stream::launch_as`] demands, whenever the graph is launched.
    ///
    /// # Errors
    /// Where the driver refuses the launch.
    pub unsafe fn add<P: Copy>(
        &mut self,
        kernel: &Kernel,
        launch: Launch,
        args: &P,
        blocks: Blocks,
    ) -> Result<(), CudaError> {
        if launch.is_empty() {
            return Ok(());
        }
        let Launch { grid, block, shared } = launch;
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        let node = sys::CUDA_KERNEL_NODE_PARAMS_v3 {
            func: kernel.function,
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            kernelParams: parameters.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        // SAFETY: all zeros are valid for this struct of numbers and unions of them, and what is reserved must be zero.
        let mut description: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
        description.type_ = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL;
        description.__bindgen_anon_1.kernel = node;
        let edge = match self.next_starts {
            Starts::Early => sys::CUgraphEdgeData {
                from_port: sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8,
                to_port: 0,
                type_: sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
                reserved: [0; 5],
            },
            Starts::InTurn => sys::CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] },
        };
        let before = self.last.as_slice();
        let mut added = std::ptr::null_mut();
        // SAFETY: the graph and the node before live; the kernel takes one parameter of the size and layout of `P`, which
        // the driver copies. The caller answers for what its pointers point to.
        unsafe {
            sys::cuGraphAddNode_v2(
                &raw mut added,
                self.graph,
                before.as_ptr(),
                &raw const edge,
                before.len(),
                &raw mut description,
            )
        }
        .result()
        .map_err(|error| refused(kernel, launch, error))?;
        if blocks == Blocks::Together {
            let together = sys::CUlaunchAttributeValue { cooperative: 1 };
            let attribute = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            // SAFETY: the node was just added, for a kernel; the value is of this attribute, and copied.
            unsafe { sys::cuGraphKernelNodeSetAttribute(added, attribute, &raw const together) }
                .result()
                .map_err(|error| refused(kernel, launch, error))?;
        }
        self.last = Some(added);
        self.kernels += 1;
        self.next_starts = self.starts;
        Ok(())
    }

    /// Makes the graph executable, and brings it to the device.
    ///
    /// # Errors
    /// Where the driver refuses it.
    pub fn finish(self, stream: &Stream) -> Result<Graph, CudaError> {
        // SAFETY: the graph lives, and flags are none.
        let executable = unsafe { result::graph::instantiate(self.graph, sys::CUgraphInstantiate_flags(0)) };
        let (executable, context) = (executable.map_err(failed)?, Arc::clone(&self.context));
        let graph = Graph { executable, kernels: self.kernels, context };
        // SAFETY: graph and stream live in the same context.
        unsafe { result::graph::upload(graph.executable, stream.raw()) }.map_err(failed)?;
        Ok(graph)
    }
}

fn failed(error: DriverError) -> CudaError {
    driver_error("making a graph", error)
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; an executable graph does not need it.
        let _ = unsafe { sys::cuGraphDestroy(self.graph) };
    }
}

impl Stream {
    /// Asks for all launches of a graph, in their order.
    ///
    /// # Safety
    /// What [`Recorder::add`] demands of every kernel that was added, now: the same buffers live.
    ///
    /// # Errors
    /// Where the device is lost.
    pub(crate) unsafe fn replay(&self, graph: &mut Graph) -> Result<(), CudaError> {
        // What follows finds all before it ended when it starts.
        let _ = self.next_starts();
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
