//! The plan of a run's memory: on a card against what was measured on one, and the micro-batch that it chooses.

#[path = "common/tiny.rs"]
mod tiny;

use loratune_engine::cuda::Planned;
use loratune_model::bench::{shape, spec};
use loratune_train::config::{Loaded, MicroBatch, RunConfig};
use loratune_train::estimate::{Job, Target, estimate_shape, largest_micro_batch};
use loratune_train::located::Located;
use tiny::{bytes, config, run};

fn configuration(settings: &str) -> Loaded {
    let words: Vec<String> = settings.split_whitespace().map(str::to_string).collect();
    let without = [("model_name_or_path", "x"), ("dataset", "x"), ("output_dir", "y")];
    RunConfig::from_words_without(&words, &without).unwrap()
}

/// Taken from an H200 in the steps of docs/benchmarks.md.
#[test]
fn a_planned_card_takes_what_a_card_took() {
    const TOLERANCE: f64 = 0.06;
    for (model, settings, measured) in [
        ("llama2-7b", "cutoff_len=1024 per_device_train_batch_size=8", 37.0),
        ("llama2-7b", "cutoff_len=4096 per_device_train_batch_size=2", 37.0),
        ("llama2-7b", "cutoff_len=1024 per_device_train_batch_size=8 gradient_checkpointing=true", 16.8),
        ("llama2-7b", "cutoff_len=1024 per_device_train_batch_size=8 use_dora=true", 45.3),
        (
            "llama2-7b",
            "cutoff_len=1024 per_device_train_batch_size=1 gradient_accumulation_steps=8 lora_target=q_proj,v_proj",
            15.9,
        ),
        ("smollm2-135m", "cutoff_len=1024 per_device_train_batch_size=8", 3.7),
    ] {
        let card = Target { planned: Planned::HOPPER, name: "a card".into(), free: None };
        let loaded = configuration(&format!("{settings} lora_rank=16 bf16=true"));
        let model = spec(&shape(model).unwrap()).unwrap();
        let plan = estimate_shape(&loaded.config, &model, &card).unwrap().memory;
        let gib = plan.taken as f64 / f64::from(1 << 30);
        println!("{settings}: planned {gib:.2} GiB, measured {measured}; {plan:?}");
        assert!((gib / measured - 1.0).abs() < TOLERANCE, "{settings}: {gib:.2} GiB, not {measured}");
        let parts = plan.weights + plan.trained + plan.optimizer + plan.activations;
        assert!(parts <= plan.peak && plan.peak <= plan.taken, "{settings}: {plan:?}");
        assert_eq!(plan.gradients, plan.trained, "{settings}: both are f32");
    }
}

#[test]
fn the_micro_batch_is_the_largest_divisor_that_fits() {
    let loaded = configuration("lora_rank=8 cutoff_len=256 bf16=true");
    let model = spec(&shape("smollm2-135m").unwrap()).unwrap();
    let job = Job::new(&loaded.config, &Located::default(), &model, None).unwrap();
    let lengths = vec![256; 12];
    for planned in [Planned::HOPPER, Planned::Processor] {
        let peak = |rows: usize| job.memory(planned, &lengths[..rows], (12 / rows) as u64).unwrap().peak;
        for rows in [1, 3, 6, 12] {
            let (found, plan) = largest_micro_batch(&job, planned, &lengths, peak(rows)).unwrap();
            assert_eq!((found, plan.peak), (rows, peak(rows)), "{planned:?}");
        }
        let (found, _) = largest_micro_batch(&job, planned, &lengths, peak(6) - 1).unwrap();
        assert_eq!(found, 4, "{planned:?}: of 1, 2, 3, 4, 6 and 12");
        let error = largest_micro_batch(&job, planned, &lengths, peak(1) - 1).unwrap_err().to_string();
        assert!(error.contains("not even one row of 256 tokens fits"), "{error}");
    }
}

#[test]
fn a_micro_batch_has_the_bytes_of_the_batch_and_accumulation_that_it_stands_for() {
    let dirs: Vec<_> = (0..5).map(|_| tempfile::tempdir().unwrap()).collect();
    let written = |dir: usize, settings: &[&str]| {
        let (outcome, seen) = run(config(dirs[dir].path(), settings));
        outcome.unwrap();
        (bytes(dirs[dir].path(), "adapter_model.safetensors"), seen.steps.len())
    };
    let step = ["per_device_train_batch_size=4", "gradient_accumulation_steps=2"];
    let of_two = written(0, &["per_device_train_batch_size=2", "gradient_accumulation_steps=4"]);
    let of_eight = written(1, &["per_device_train_batch_size=8"]);
    assert!(written(2, &[&step[..], &["micro_batch=2"]].concat()) == of_two);
    // The tiny model fits whole.
    assert!(written(3, &[&step[..], &["micro_batch=auto"]].concat()) == of_eight);
    assert!(written(4, &step) != of_eight, "the order of the sums is another");
}

#[test]
fn a_micro_batch_divides_a_step() {
    let of = |settings: &str| {
        let words: Vec<String> = settings.split_whitespace().map(str::to_string).collect();
        RunConfig::from_words_without(
            &words,
            &[("model_name_or_path", "x"), ("dataset", "x"), ("output_dir", "y")],
        )
    };
    assert_eq!(of("micro_batch=auto").unwrap().config.micro_batch, Some(MicroBatch::Auto));
    for (settings, told) in [
        ("micro_batch=3 per_device_train_batch_size=4 gradient_accumulation_steps=2", "a step has 8 rows"),
        ("micro_batch=0", "from 1 to 16777216, or auto"),
        ("micro_batch=auto neftune_noise_alpha=5 neftune_scale=per_batch", "per_sequence"),
    ] {
        let error = of(settings).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
