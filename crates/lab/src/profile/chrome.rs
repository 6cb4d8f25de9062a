//! The trace event format that Chrome's tracing and <https://ui.perfetto.dev> open.

use mantissa::ops::Scope;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Phase, Profile, TracedPass, Ways};
use crate::label::Label;
use crate::machine::Machine;

/// The one process of a trace.
const PROCESS: u64 = 1;

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// Kinds of events, with commas between them.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub cat: String,
    /// `X` for an event that begins and ends, `M` for a name of a process or thread.
    pub ph: String,
    /// When it began, in microseconds.
    pub ts: f64,
    /// How long it took, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dur: Option<f64>,
    /// The process.
    pub pid: u64,
    /// The thread.
    pub tid: u64,
    /// What else is to be known of it.
    pub args: Map<String, Value>,
}

/// A file of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChromeTrace {
    /// The events.
    pub trace_events: Vec<Event>,
    /// The unit in which viewers show times.
    pub display_time_unit: String,
    /// What it was measured on.
    pub other_data: Map<String, Value>,
}

impl Profile {
    /// The repetition of each phase that took the middle time, as events: the phases one after the other, kernel by kernel,
    /// and as launched where that differs. A run is an event around those of its scopes. A scope that begins while another
    /// goes on is on a further thread.
    pub fn chrome_trace(&self, machine: &Machine) -> ChromeTrace {
        let mut file = File::default();
        file.name_process(&format!("{} on {}", self.model, machine.device));
        for phase in &self.phases {
            let Some(middle) = middle(phase) else { continue };
            self.add(&mut file, phase, &middle.kernels, "kernel by kernel");
            if let Some(launches) = &middle.launches {
                self.add(&mut file, phase, launches, "as launched");
            }
        }
        let about = [
            ("machine", json!(machine)),
            ("model", json!(self.model)),
            ("policy", json!(self.plan.policy.to_string())),
        ];
        ChromeTrace {
            trace_events: file.events,
            display_time_unit: "ms".to_owned(),
            other_data: about.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// Adds the events of a pass behind those that are there.
    fn add(&self, file: &mut File, phase: &Phase, pass: &TracedPass, how: &str) {
        let mut lanes = Lanes::new(file, format!("{}, {how}", phase.kind.name()));
        for (index, (run, shape)) in pass.runs.iter().zip(&phase.shapes).enumerate() {
            let start = file.now;
            let end = start + nanoseconds(run.trace.seconds);
            let args = [("rows", shape.rows()), ("sequences", shape.sequences.len())];
            let args = args.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
            let name = format!("{} {}", phase.kind.name(), index + 1);
            file.event(lanes.first(), Span { name, category: "run", start, end, args });
            for scope in &run.trace.scopes {
                // Rounding takes no scope out of its run.
                let begin = (start + nanoseconds(scope.start)).min(end);
                let end = (start + nanoseconds(scope.start + scope.seconds)).clamp(begin, end);
                let (name, args) = self.describe(phase, index, scope);
                let lane = lanes.free(file, begin, end);
                file.event(lane, Span { name, category: "kernel", start: begin, end, args });
            }
            file.now = end;
            if run.sampling > 0.0 {
                let end = end + nanoseconds(run.sampling);
                let (name, args) = ("sampling".to_owned(), Map::new());
                file.event(lanes.first(), Span { name, category: "sampling", start: file.now, end, args });
                file.now = end;
            }
        }
    }

    /// Name and label of a scope, with what it moves and computes.
    fn describe(&self, phase: &Phase, run: usize, scope: &Scope) -> (String, Map<String, Value>) {
        let of = |index: usize| {
            Some((self.plan.steps.get(index)?, self.labels.get(index)?, phase.steps.get(run)?.get(index)?))
        };
        let backend = self.plan.backend.name.clone();
        let kernel = scope.kernel.clone();
        let Some((step, label, computed)) = scope.step.and_then(of) else {
            let label = Label { backend, kernel, ..Label::default() };
            return (scope.kernel.clone(), object(&label));
        };
        let mut args = object(&Label { kernel, shape: computed.shape.clone(), ..label.clone() });
        args.insert("bytes".to_owned(), json!(computed.cost.bytes()));
        args.insert("operations".to_owned(), json!(computed.cost.operations));
        (step.name.clone(), args)
    }
}

/// The repetition of middle time, kernel by kernel.
fn middle(phase: &Phase) -> Option<&Ways> {
    let mut ways: Vec<&Ways> = phase.repetitions.iter().map(|one| &one.ways).collect();
    ways.sort_by(|a, b| a.kernels.seconds().total_cmp(&b.kernels.seconds()));
    ways.get(ways.len() / 2).copied()
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

fn object(label: &Label) -> Map<String, Value> {
    match json!(label) {
        Value::Object(map) => map,
        other => Map::from_iter([("label".to_owned(), other)]),
    }
}

/// Something between two times, in nanoseconds.
struct Span {
    name: String,
    category: &'static str,
    start: u64,
    end: u64,
    args: Map<String, Value>,
}

/// Events as they are added.
#[derive(Default)]
struct File {
    events: Vec<Event>,
    threads: u64,
    /// When everything so far has ended, in nanoseconds.
    now: u64,
}

impl File {
    fn event(&mut self, tid: u64, span: Span) {
        self.events.push(Event {
            name: span.name,
            cat: span.category.to_owned(),
            ph: "X".to_owned(),
            ts: microseconds(span.start),
            dur: Some(microseconds(span.end - span.start)),
            pid: PROCESS,
            tid,
            args: span.args,
        });
    }

    fn name_process(&mut self, name: &str) {
        self.metadata("process_name", 0, name);
    }

    fn thread(&mut self, name: &str) -> u64 {
        self.threads += 1;
        self.metadata("thread_name", self.threads, name);
        self.threads
    }

    fn metadata(&mut self, what: &str, tid: u64, name: &str) {
        self.events.push(Event {
            name: what.to_owned(),
            cat: String::new(),
            ph: "M".to_owned(),
            ts: 0.0,
            dur: None,
            pid: PROCESS,
            tid,
            args: Map::from_iter([("name".to_owned(), json!(name))]),
        });
    }
}

/// Threads for what may overlap, each with the time until which it is taken.
struct Lanes {
    name: String,
    lanes: Vec<(u64, u64)>,
}

impl Lanes {
    fn new(file: &mut File, name: String) -> Lanes {
        let first = (file.thread(&name), 0);
        Lanes { name, lanes: vec![first] }
    }

    fn first(&self) -> u64 {
        self.lanes[0].0
    }

    /// The first thread that is free from `start` on, taken until `end`.
    fn free(&mut self, file: &mut File, start: u64, end: u64) -> u64 {
        if let Some((thread, until)) = self.lanes.iter_mut().find(|(_, until)| *until <= start) {
            *until = end;
            return *thread;
        }
        let thread = file.thread(&format!("{}, beside", self.name));
        self.lanes.push((thread, end));
        thread
    }
}
