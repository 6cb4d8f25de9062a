//! A checkpoint with everything that lies beside it, and the way from there to a generator.

use std::path::Path;
use std::sync::Arc;

use mantissa_engine::engine::{Engine, EngineError, EngineOptions};
use mantissa_engine::sampling::SamplingOptions;
use mantissa_model::arch;
use mantissa_model::checkpoint::Checkpoint;
use mantissa_model::config::{GenerationDefaults, ModelConfig};
use mantissa_model::hub::{self, DownloadProgress, HubSettings, RepoId};
use mantissa_model::location::{EmbeddedFolder, Location};
use mantissa_model::template::ChatTemplate;
use mantissa_model::tokenizer::Tokenizer;
use mantissa_ops::backend::NoProgress;
use mantissa_ops::{Backend, LoadOptions, MemoryUse, Plan, Progress, Session};

use crate::error::Error;
use crate::generator::Generator;
use crate::options::{BatchRule, LogitRows, Options};
use crate::prompt::Prompt;
use crate::text::{LazyTokenizer, existing, open_chat_template};

/// The model that is part of every program built with Mantissa: small, trained on public-domain prose and haiku,
/// described in `models/tiny`.
pub const BUILT_IN: Location =
    Location::Embedded(EmbeddedFolder { name: mantissa_tiny::NAME, files: mantissa_tiny::FILES });

/// Where a model lies: [`BUILT_IN`] for its name, `mantissa-tiny`; a folder or file of this name; or else a Hugging Face
/// repository (`owner/name`, `owner/name@revision:file.gguf`), which is downloaded into the cache that all Hugging Face
/// tools share. A folder that happens to be called `mantissa-tiny` is `./mantissa-tiny`.
///
/// # Errors
/// Where there is none of them, or the download fails.
pub fn locate(name: &str, hub: &HubSettings, progress: &dyn DownloadProgress) -> Result<Location, Error> {
    if name == mantissa_tiny::NAME {
        return Ok(BUILT_IN);
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.into());
    }
    match name.parse::<RepoId>() {
        Ok(id) => Ok(hub::fetch(&id, hub, progress)?.into()),
        Err(_) => Err(Error::NoModel(path.to_owned())),
    }
}

/// A model, opened: its weights are read when it is prepared.
pub struct Model {
    location: Location,
    checkpoint: Checkpoint,
    tokenizer: Arc<LazyTokenizer>,
}

impl Model {
    /// Opens a Hugging Face folder, a `.gguf` file or an embedded folder; [`locate`] downloads one.
    ///
    /// # Errors
    /// Where there is none, or it is not readable as a model that Mantissa knows.
    pub fn open(location: impl Into<Location>) -> Result<Model, Error> {
        let location = existing(location.into())?;
        let checkpoint = Checkpoint::open(&location)?;
        Ok(Model { tokenizer: Arc::new(LazyTokenizer::new(&location)), location, checkpoint })
    }

    /// Opens the model that is part of the program, `mantissa-tiny`.
    ///
    /// # Errors
    /// None that its own tests have not excluded.
    pub fn built_in() -> Result<Model, Error> {
        Model::open(BUILT_IN)
    }

    /// Where it lies.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Its files and tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its architecture and sizes.
    pub fn config(&self) -> &ModelConfig {
        self.checkpoint.config()
    }

    /// Its tokenizer, or nothing where it has none; opened at the first call.
    ///
    /// # Errors
    /// Where it is malformed or of an unknown kind.
    pub fn tokenizer(&self) -> Result<Option<Arc<Tokenizer>>, Error> {
        self.tokenizer.get()
    }

    /// Its chat template.
    ///
    /// # Errors
    /// Where it has none, or a malformed one.
    pub fn chat_template(&self) -> Result<ChatTemplate, Error> {
        open_chat_template(&self.location)
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// Where a text is given and the model has no tokenizer.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode(prompt)
    }

    /// Resolves what would be computed, without reading weights.
    ///
    /// # Errors
    /// Everything that the backend cannot do under the policy, at once.
    pub fn plan(&self, options: &Options) -> Result<Arc<Plan>, Error> {
        self.plan_on(options, &*options.backend()?)
    }

    fn plan_on(&self, options: &Options, backend: &dyn Backend) -> Result<Arc<Plan>, Error> {
        let program = arch::program(self.config())?;
        let plan = Plan::resolve(program, options.policy(), backend).map_err(EngineError::from)?;
        if options.batch == BatchRule::Invariant {
            plan.check_batch_invariance()?;
        }
        Ok(plan)
    }

    /// What the model will hold of the memory that `backend` computes in, made ready under these options, without
    /// reading weights; nothing where the backend cannot say.
    ///
    /// # Errors
    /// As [`Model::plan`], and where the backend cannot run the plan at these sizes.
    pub fn memory(&self, options: &Options, backend: &dyn Backend) -> Result<Option<MemoryUse>, Error> {
        let plan = self.plan_on(options, backend)?;
        let limits = engine_options(options, &plan).limits(&plan)?;
        Ok(backend.memory(&plan, &limits).map_err(EngineError::from)?)
    }

    /// Makes the model ready to generate: everything that can fail fails here.
    ///
    /// # Errors
    /// As [`Model::plan`], and where weights are missing, of a wrong shape or beyond the range of the policy's format.
    pub fn prepare(&self, options: &Options) -> Result<Generator, Error> {
        self.prepare_with_progress(options, &NoProgress)
    }

    /// As [`Model::prepare`], and tells how far loading is.
    ///
    /// # Errors
    /// As [`Model::prepare`].
    pub fn prepare_with_progress(
        &self,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Generator, Error> {
        let backend = options.backend()?;
        let plan = self.plan_on(options, &*backend)?;
        let engine = engine_options(options, &plan);
        Ok(Generator {
            engine: Engine::prepare(plan, &self.checkpoint, &*backend, &engine, progress)
                .map_err(|error| self.with_file(error))?,
            tokenizer: self.tokenizer.clone(),
            recommended: recommended(self.checkpoint.generation_defaults()),
            checkpoint_end_ids: self.checkpoint.eos_token_ids().to_vec(),
        })
    }

    /// Makes the model ready to run batch by batch on `backend`, which the options ask for too, without an engine: for
    /// measurements.
    ///
    /// # Errors
    /// As [`Model::prepare`].
    pub fn session(
        &self,
        options: &Options,
        backend: &dyn Backend,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, Error> {
        let plan = self.plan_on(options, backend)?;
        let limits = engine_options(options, &plan).limits(&plan)?;
        let load = LoadOptions { limits, overflow: options.overflow };
        let prepared = backend.prepare(plan, &self.checkpoint, &load, progress);
        prepared.map_err(|error| self.with_file(error.into()))
    }

    /// Adds the file to an error about one of its tensors.
    fn with_file(&self, error: EngineError) -> Error {
        let tensor = match &error {
            EngineError::Prepare(prepare) => prepare.tensor(),
            _ => None,
        };
        let found = tensor.and_then(|name| self.checkpoint.tensors().find(|tensor| tensor.name == name));
        match found.map(|tensor| tensor.file.to_path_buf()) {
            Some(file) => Error::Weights { file, error },
            None => Error::Engine(error),
        }
    }
}

/// Rows of a batch whose logits are all wanted, which are wide.
const SCORED_ROWS: usize = 512;

/// How the engine is to run a plan.
fn engine_options(options: &Options, plan: &Plan) -> EngineOptions {
    let engine = EngineOptions {
        context: Some(options.context.unwrap_or(plan.program.max_context.min(Options::DEFAULT_CONTEXT))),
        sequences: options.sequences.unwrap_or(1),
        overflow: options.overflow,
        ..EngineOptions::default()
    };
    match options.logits {
        LogitRows::Last => engine,
        LogitRows::All => EngineOptions { chunk: Some(SCORED_ROWS), outputs: SCORED_ROWS, ..engine },
    }
}

fn recommended(defaults: &GenerationDefaults) -> SamplingOptions {
    SamplingOptions {
        do_sample: defaults.do_sample,
        temperature: defaults.temperature.map(|x| x as f32),
        top_k: defaults.top_k.map(|k| u32::try_from(k).unwrap_or(u32::MAX)),
        top_p: defaults.top_p.map(|x| x as f32),
        min_p: defaults.min_p.map(|x| x as f32),
        repetition_penalty: defaults.repetition_penalty.map(|x| x as f32),
        ..SamplingOptions::default()
    }
}
