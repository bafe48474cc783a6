//! What memory a run takes, found before anything is loaded: its step runs on a device that is planned with, which counts what
//! the step's own code allocates. There is no second description of it that could differ.

use loratune_engine::cuda::{self, CudaDevice, Planned, PlannedDevice};
use loratune_engine::rng::Key;
use loratune_engine::{DType, Device, DeviceChoice, Gradients, Mode, Params, Tape, Tensor};
use loratune_model::adapter::{self, AdapterSpec};
use loratune_model::decoder::Trained;
use loratune_model::files::peft;
use loratune_model::{Batch, Decoder, DecoderSpec};
use loratune_tokenizer::TokenizerBundle;
use serde::Serialize;

use crate::config::{Finetuning, MicroBatch, Optimizer as Choice, RunConfig};
use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::freeze;
use crate::located::Located;
use crate::model::{dtypes, neftune, spec_of, token_indices};
use crate::optimizer::Optimizer;

/// What a run takes at its peak and of what that consists, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Numbers of the model, and those that are trained (an adapter's come on top of the model's).
    pub parameters: usize,
    pub trained_parameters: usize,
    /// Frozen weights.
    pub weights: usize,
    /// Trained ones, in f32.
    pub trained: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The optimiser's state.
    pub optimizer: usize,
    /// What the forward pass keeps for the backward pass.
    pub activations: usize,
    /// The same of one block, on average.
    pub block: usize,
    /// What the loss takes while it is computed: a chunk of logits and what comes of it.
    pub loss: usize,
    /// What the backward pass takes beyond what it finds, at its peak.
    pub backward: usize,
    /// Memory of matrix products, on a card.
    pub workspace: usize,
    /// The most that tensors hold at a time, with the workspace.
    pub peak: usize,
    /// The most that is taken from the system or the card, with what is kept for the next tensors.
    pub taken: usize,
}

/// What a run's memory depends on.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    pub config: &'a RunConfig,
    pub model: &'a DecoderSpec,
    adapter: Option<AdapterSpec>,
    trained: Trained,
}

impl<'a> Job<'a> {
    /// The job of a configuration on a model of this description. Without a tokenizer, tokens that are trained by themselves can't be
    /// named by their text.
    ///
    /// # Errors
    /// If the two do not fit.
    pub fn new(
        config: &'a RunConfig,
        located: &Located,
        model: &'a DecoderSpec,
        tokenizer: Option<&TokenizerBundle>,
    ) -> Result<Job<'a>> {
        let adapter = match (config.finetuning_type, located.adapter_path(config)) {
            (Finetuning::Lora, Some(path)) => Some(AdapterSpec::from_config(&peft::read_adapter(path)?.0)?),
            (Finetuning::Lora, None) => {
                let rows = match tokenizer {
                    Some(tokenizer) => token_indices(config, tokenizer)?,
                    None => None,
                };
                let spec = spec_of(config, rows);
                spec.check(model)?;
                Some(spec)
            }
            (Finetuning::Full | Finetuning::Freeze, _) => None,
        };
        let trained = match &adapter {
            Some(spec) => spec.trained(model)?,
            None => freeze::trained(config, model)?,
        };
        Ok(Job { config, model, adapter, trained })
    }

    /// The memory of steps of so many micro-batches, which have rows of these lengths, every token trained on.
    ///
    /// # Errors
    /// If the device can't do what the run asks for, as the run itself would say it.
    pub fn memory(&self, planned: Planned, rows: &[usize], micro_batches: u64) -> Result<MemoryPlan> {
        let device = PlannedDevice::new(planned);
        let mut run = self.build(&device)?;
        let mut plan = MemoryPlan {
            parameters: self.model.parameters(),
            trained_parameters: run.params.numel(),
            weights: device.usage().held - bytes_of(&run.params),
            trained: bytes_of(&run.params),
            gradients: bytes_of(&run.params),
            ..MemoryPlan::default()
        };
        let before = device.usage().held;
        let mut optimizer = self.optimizer(&device, planned, &run.params)?;
        plan.optimizer = device.usage().held - before;
        plan.peak = device.usage().peak;
        let batch = batch(rows, self.model);
        // The second step finds what the first leaves behind, as all later ones do.
        for step in 0..2 {
            self.step(&device, &mut run, &mut optimizer, (&batch, micro_batches), step, &mut plan)?;
        }
        plan.block = plan.activations / self.model.num_layers().max(1);
        plan.workspace = PlannedDevice::workspace(planned);
        plan.peak += plan.workspace;
        plan.taken = device.usage().taken;
        Ok(plan)
    }

    fn build(&self, device: &PlannedDevice) -> Result<Built> {
        let mut params = Params::new();
        let dtypes = dtypes(self.config);
        let mut decoder = Decoder::build(self.model, device, dtypes, &mut params, &self.trained)?;
        decoder.set_neftune(neftune(self.config));
        decoder.set_checkpointing(self.config.gradient_checkpointing);
        if let Some(spec) = &self.adapter {
            adapter::attach(&mut decoder, &mut params, spec, adapter::Start::Planned(device), device)?;
        }
        Ok(Built { decoder, params })
    }

    fn optimizer(
        &self,
        device: &PlannedDevice,
        planned: Planned,
        params: &Params,
    ) -> Result<Box<dyn Update>> {
        if planned == Planned::Processor && self.config.optim != Choice::AdamW {
            // Its state is not a tensor's on every device; it is only its size that counts.
            let bytes = Optimizer::bytes_for(params, self.config) as usize;
            return Ok(Box::new(Held(device.tensor(DType::F32, &[bytes.div_ceil(4)])?)));
        }
        Ok(Box::new(Optimizer::new(params, self.config)?))
    }

    /// A step, as [`Trainer`](crate::trainer::Trainer) does it.
    fn step(
        &self,
        device: &PlannedDevice,
        run: &mut Built,
        optimizer: &mut Box<dyn Update>,
        (batch, micro_batches): (&Batch, u64),
        step: u64,
        plan: &mut MemoryPlan,
    ) -> Result<()> {
        let mut grads = Gradients::new(&run.params);
        let mut peak = |from: usize| {
            let peak = device.usage().peak;
            plan.peak = plan.peak.max(peak);
            device.measure();
            peak - from
        };
        let held = || device.usage().held;
        device.measure();
        // All after the second are as the second, which has gradients beside it.
        for micro in 0..micro_batches.min(2) {
            let key = Key::new(self.config.seed).with(step).with(micro);
            let mut tape = Tape::new(&run.params, Mode::Train(key));
            let start = held();
            let hidden = run.decoder.last_hidden(&mut tape, batch)?;
            plan.activations = held() - start;
            let start = held();
            peak(0);
            let out = run.decoder.loss_of(&mut tape, &hidden, batch)?;
            drop(hidden);
            plan.loss = peak(start);
            let start = held();
            tape.backward(&out.loss, 1.0, &mut grads)?;
            plan.backward = peak(start);
        }
        grads.norm()?;
        optimizer.update(&mut run.params, &grads)?;
        peak(0);
        Ok(())
    }
}

struct Built {
    decoder: Decoder,
    params: Params,
}

/// An optimiser, or the memory of one.
trait Update {
    fn update(&mut self, params: &mut Params, grads: &Gradients) -> Result<()>;
}

impl Update for Optimizer {
    fn update(&mut self, params: &mut Params, grads: &Gradients) -> Result<()> {
        let rates = vec![0.0; params.len()];
        Ok(self.step(params, grads, 1.0, &rates)?)
    }
}

struct Held(#[allow(dead_code)] Tensor);

impl Update for Held {
    fn update(&mut self, _: &mut Params, _: &Gradients) -> Result<()> {
        Ok(())
    }
}

fn bytes_of(params: &Params) -> usize {
    params.ids().map(|id| params.value(id).bytes()).sum()
}

/// Rows of these lengths, cut to what the model takes.
fn batch(rows: &[usize], model: &DecoderSpec) -> Batch {
    let ids: Vec<Vec<u32>> = rows.iter().map(|&n| vec![0; n.min(model.max_positions)]).collect();
    let labels: Vec<Vec<i32>> = ids.iter().map(|row| vec![0; row.len()]).collect();
    Batch::from_labelled(ids.iter().zip(&labels).map(|(i, l)| (&i[..], &l[..])))
}

/// Which of the micro-batches that `rows` can be cut into is the largest whose memory is at most `limit` bytes: a divisor of
/// the rows of a step, so that all of a step's are alike. `lengths` are those of the step's rows, the longest first.
///
/// # Errors
/// If not even one row fits, or as [`Job::memory`].
pub fn largest_micro_batch(
    job: &Job<'_>,
    planned: Planned,
    lengths: &[usize],
    limit: usize,
) -> Result<(usize, MemoryPlan)> {
    let rows = lengths.len();
    let divisors: Vec<usize> = (1..=rows).filter(|n| rows.is_multiple_of(*n)).collect();
    let mut best = None;
    // What fits is a beginning of the divisors.
    let (mut low, mut high) = (0, divisors.len());
    while low < high {
        let middle = (low + high) / 2;
        let size = divisors[middle];
        let plan = job.memory(planned, &lengths[..size], (rows / size) as u64)?;
        if plan.peak <= limit {
            best = Some((size, plan));
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if let Some(best) = best {
        return Ok(best);
    }
    let least = job.memory(planned, &lengths[..rows.min(1)], rows as u64)?;
    let mib = |bytes: usize| bytes >> 20;
    Err(Error::Invalid(format!(
        "micro_batch: auto: not even one row of {} tokens fits: it needs {} MiB, and {} MiB are free; a smaller cutoff_len needs \
         less, and so does gradient_checkpointing",
        lengths.first().copied().unwrap_or(0),
        mib(least.peak),
        mib(limit)
    )))
}

/// An estimate with what it was made for.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    pub memory: MemoryPlan,
    /// Tokens of the rows of a micro-batch.
    pub rows: Vec<usize>,
    pub accumulation: u64,
    /// Of the data, if it was looked at.
    pub data: Option<DataSize>,
    /// Why not, in words.
    pub without_data: Option<String>,
}

/// How much a run has to do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DataSize {
    pub rows_per_epoch: usize,
    pub tokens_per_epoch: u64,
    pub total_steps: u64,
}

/// Datasets above this are not read for an estimate.
const LARGEST_DATA: u64 = 64 << 20;

/// The estimate of a run. `data` is whether to look at its data, which it tokenises; then the rows of a micro-batch are the longest
/// there are, and else of cutoff_len.
///
/// # Errors
/// As [`prepare`](crate::run::prepare), of what is looked at.
pub fn estimate(config: &RunConfig, located: &Located, target: &Target, data: bool) -> Result<Estimate> {
    let opened = crate::vocabulary::open(config, located)?;
    let model = &opened.files.config.spec;
    let job = Job::new(config, located, model, Some(&opened.tokenizer))?;
    let (feed, without_data) = match reason_against_data(config, data) {
        Some(why) => (None, Some(why)),
        None => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = now.map_or(0, |d| d.as_secs());
            let (feed, _) = crate::data::load(config, None, &opened.files, &opened.tokenizer, now)?;
            (Some(feed), None)
        }
    };
    let mut made = of_step(&job, target, lengths_of_step(config, feed.as_ref(), model))?;
    made.data = feed.map(|feed| DataSize {
        rows_per_epoch: feed.rows_per_epoch(),
        tokens_per_epoch: feed.tokens_per_epoch().unwrap_or(0),
        total_steps: feed.total_steps(config),
    });
    made.without_data = without_data;
    Ok(made)
}

/// The estimate of a model that is only described, with rows of cutoff_len.
///
/// # Errors
/// If the configuration does not fit the model.
pub fn estimate_shape(config: &RunConfig, model: &DecoderSpec, target: &Target) -> Result<Estimate> {
    let job = Job::new(config, &Located::default(), model, None)?;
    of_step(&job, target, lengths_of_step(config, None, model))
}

/// Of a step with rows of these lengths, the longest first.
fn of_step(job: &Job<'_>, target: &Target, lengths: Vec<usize>) -> Result<Estimate> {
    let (config, all) = (job.config, lengths.len());
    let size = match (config.micro_batch, target.limit()) {
        (Some(MicroBatch::Rows(n)), _) => n as usize,
        (Some(MicroBatch::Auto), Some(limit)) => largest_micro_batch(job, target.planned, &lengths, limit)?.0,
        _ => config.per_device_train_batch_size as usize,
    };
    let rows: Vec<usize> = lengths.into_iter().take(size).collect();
    let accumulation = all.div_ceil(size.max(1)) as u64;
    let memory = job.memory(target.planned, &rows, accumulation)?;
    Ok(Estimate { memory, rows, accumulation, data: None, without_data: None })
}

/// Tokens of a step's rows, the longest first: of the longest there are, or can be where the data is not known. An epoch of fewer rows than
/// a step's has no longer ones, so the last stands for those that are missing.
pub(crate) fn lengths_of_step(config: &RunConfig, feed: Option<&Feed>, model: &DecoderSpec) -> Vec<usize> {
    let rows = (config.per_device_train_batch_size * config.gradient_accumulation_steps) as usize;
    let longest = feed.and_then(|feed| feed.longest_rows(rows)).unwrap_or_default();
    let most = (config.cutoff_len as usize).min(model.max_positions);
    (0..rows).map(|i| *longest.get(i).or(longest.last()).unwrap_or(&most)).collect()
}

/// Why an estimate does not look at the data.
fn reason_against_data(config: &RunConfig, wanted: bool) -> Option<String> {
    let all = config.dataset.iter().chain(&config.eval_dataset);
    if !wanted || config.dataset.is_empty() {
        return Some("not asked for".into());
    }
    if config.streaming {
        return Some("it is streamed".into());
    }
    let mut bytes = 0;
    for name in all {
        match size(&crate::data::place(name, &config.dataset_dir)) {
            Some(size) => bytes += size,
            None => return Some(format!("`{name}` is not on this machine")),
        }
    }
    (bytes > LARGEST_DATA).then(|| format!("it is {} MB, which takes a while to tokenise", bytes / 1_000_000))
}

/// Bytes of a file, or of a folder's files.
fn size(path: &std::path::Path) -> Option<u64> {
    let info = std::fs::metadata(path).ok()?;
    if info.is_file() {
        return Some(info.len());
    }
    let entries = std::fs::read_dir(path).ok()?.flatten();
    Some(entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum())
}

/// What an estimate is for: a device that is there, or one like it.
#[derive(Clone, Debug)]
pub struct Target {
    pub planned: Planned,
    pub name: String,
    /// Bytes that are free now, where there is such a device and the system tells.
    pub free: Option<usize>,
}

/// Shares of the free memory that `micro_batch: auto` uses: a card is the run's own, the processor's memory is not.
const OF_CARD: f64 = 0.95;
const OF_PROCESSOR: f64 = 0.8;

/// What `micro_batch: auto` may use of so much free memory.
pub(crate) fn limit(planned: Planned, free: usize) -> usize {
    let share = if planned == Planned::Processor { OF_PROCESSOR } else { OF_CARD };
    (free as f64 * share) as usize
}

impl Target {
    fn limit(&self) -> Option<usize> {
        self.free.map(|free| limit(self.planned, free))
    }

    /// Of a choice. A card that is asked for by name and is not there is taken to be one of Hopper's.
    ///
    /// # Errors
    /// If a card fails.
    pub fn of(choice: DeviceChoice) -> Result<Target> {
        let card = match (choice, cuda::available()) {
            (DeviceChoice::Only(Device::Cuda(n)), Ok(count)) if n < count => Some(n),
            (DeviceChoice::Auto, Ok(_)) => Some(0),
            _ => None,
        };
        if let Some(n) = card {
            let card = CudaDevice::get(n)?;
            return Ok(Target {
                planned: Planned::like(&card),
                name: format!("{card}: {}", card.name()),
                free: Some(card.memory()?.0),
            });
        }
        Ok(match choice {
            DeviceChoice::Only(Device::Cuda(n)) => Target {
                planned: Planned::HOPPER,
                name: format!("cuda:{n}: none is here; an NVIDIA H100 or H200 is taken for it"),
                free: None,
            },
            _ => Target {
                planned: Planned::Processor,
                name: "cpu".into(),
                free: crate::run::available_memory().map(|bytes| bytes as usize),
            },
        })
    }
}
