//! `loratune bench`.

use std::time::Instant;

use anyhow::Result;
use loratune_engine::cuda::CudaDevice;
use loratune_engine::profile::{self, Pass};
use loratune_engine::{DType, Device, bench, isa};
use loratune_model::adapter::{AdapterSpec, Targets};
use loratune_model::bench::StepBench;
use loratune_model::decoder::Dtypes;
use loratune_train::run::peak_memory;
use serde_json::{Value, json};

use super::estimate::decoder;
use crate::cli::{BenchArgs, BenchCommand, BenchMethod, BenchOpsArgs, BenchStepArgs};
use crate::output::{self, bytes, field};

pub fn run(args: &BenchArgs) -> Result<()> {
    let start = Instant::now();
    match &args.what {
        BenchCommand::Step(args) => step(args, start),
        BenchCommand::Ops(args) => ops(args),
    }
}

fn adapter(args: &BenchStepArgs) -> AdapterSpec {
    AdapterSpec {
        r: args.rank,
        alpha: 2.0 * args.rank as f64,
        targets: match args.targets.as_str() {
            "all" | "all-linear" => Targets::AllLinear,
            names => Targets::Names(names.split(',').map(|n| n.trim().to_string()).collect()),
        },
        init: args.init,
        use_dora: args.method == BenchMethod::Dora,
        ..AdapterSpec::default()
    }
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 if middle > 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted.get(middle).copied().unwrap_or(f64::NAN),
    }
}

fn step(args: &BenchStepArgs, start: Instant) -> Result<()> {
    let model = decoder(&args.shape)?;
    let dtype: DType = args.dtype.into();
    let chosen = args.device.open()?;
    if let Some(why) = &chosen.why_cpu {
        output::note(&format!("device: cpu ({why})"));
    }
    let device = chosen.device;
    let mut bench = StepBench::new(
        &model,
        Dtypes::both(dtype),
        &adapter(args),
        args.batch,
        args.seq,
        args.accumulation,
        device,
    )?;
    bench.set_checkpointing(args.gradient_checkpointing.into());
    let built = start.elapsed().as_secs_f64();
    bench.step()?;
    device.synchronize()?;
    let first = start.elapsed().as_secs_f64();
    let mut times = Vec::new();
    let mut third = None;
    for i in 0..args.steps {
        let step = Instant::now();
        bench.step()?;
        device.synchronize()?;
        times.push(step.elapsed().as_secs_f64());
        if i == 1 {
            third = Some(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let (median, best) = (median(&times), times[0]);
    let tokens = bench.tokens() as f64;
    let card = match device {
        Device::Cuda(ordinal) => Some(CudaDevice::get(ordinal)?),
        Device::Cpu => None,
    };
    let on_card = card.as_ref().map(|card| card.peak_memory());
    let memory = peak_memory();
    let profile = if args.profile { Some(profiled(&mut bench, dtype, device)?) } else { None };
    if args.json {
        return Ok(output::json(&json!({
            "shape": args.shape, "batch": args.batch, "seq": args.seq, "accumulation": args.accumulation,
            "rank": args.rank, "init": args.init.name(), "targets": args.targets, "method": format!("{:?}", args.method).to_lowercase(),
            "dtype": dtype.to_string(), "device": device.to_string(), "card": card.as_ref().map(|c| c.name()), "isa": isa().name(),
            "threads": rayon::current_num_threads(), "tokens_per_second": tokens / median,
            "step_ms": median * 1e3, "best_step_ms": best * 1e3, "peak_memory_bytes": memory,
            "peak_card_bytes": on_card.map(|(_, reserved)| reserved), "peak_card_tensor_bytes": on_card.map(|(used, _)| used),
            "built_s": built, "first_step_s": first, "third_step_s": third,
            "profile": profile.as_ref().map(Profile::json),
        }))?);
    }
    let mut out = field(
        "step",
        format!(
            "{:.1} ms (median of {}), {:.1} ms at best: {} rows of {} tokens{}",
            median * 1e3,
            times.len(),
            best * 1e3,
            args.batch,
            args.seq,
            if args.accumulation > 1 { format!(", {} times", args.accumulation) } else { String::new() }
        ),
    );
    out += &field("speed", format!("{:.0} tokens/s", tokens / median));
    out += &field("memory", memory.map_or("unknown".to_string(), |b| format!("{} at the peak", bytes(b))));
    if let (Some(card), Some((used, reserved))) = (&card, on_card) {
        let (used, reserved) = (bytes(used as u64), bytes(reserved as u64));
        out += &field(
            &device.to_string(),
            format!("{}: {reserved} taken at the peak, {used} in tensors", card.name()),
        );
    }
    out += &field("start", format!("{built:.2} s to build the model, first step done after {first:.2} s"));
    out += &field("machine", format!("{} threads, {}", rayon::current_num_threads(), isa().name()));
    if let Some(profile) = profile {
        out += "\n";
        out += &profile.text();
    }
    Ok(output::print(&out)?)
}

/// Where a step's time goes.
struct Profile {
    /// Op, direction, calls, seconds, floating-point operations and bytes of products.
    ops: Vec<(&'static str, Pass, profile::Entry)>,
    seconds: f64,
    ceilings: Option<bench::Ceilings>,
}

fn profiled(bench: &mut StepBench, dtype: DType, device: Device) -> Result<Profile> {
    // The processor's: a card's are not measured here.
    let ceilings = (device == Device::Cpu).then(|| bench::ceilings(dtype));
    profile::start();
    let start = Instant::now();
    let result = bench.step().and_then(|_| Ok(device.synchronize()?));
    let seconds = start.elapsed().as_secs_f64();
    let mut ops = profile::stop();
    result?;
    ops.sort_by(|a, b| b.2.seconds.total_cmp(&a.2.seconds));
    Ok(Profile { ops, seconds, ceilings })
}

impl Profile {
    fn elsewhere(&self) -> f64 {
        self.seconds - self.ops.iter().map(|(.., e)| e.seconds).sum::<f64>()
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{:<22} {:<8} {:>6} {:>9} {:>6} {:>8} {:>6}\n",
            "op", "", "calls", "ms", "%", "GFLOP/s", "GB/s"
        );
        let share = |s: f64| s / self.seconds * 100.0;
        for (op, pass, e) in &self.ops {
            let pass = if *pass == Pass::Forward { "forward" } else { "backward" };
            let rate = |amount: f64| {
                if amount > 0.0 { format!("{:.0}", amount / e.seconds / 1e9) } else { String::new() }
            };
            out += &format!(
                "{op:<22} {pass:<8} {:>6} {:>9.2} {:>6.1} {:>8} {:>6}\n",
                e.calls,
                e.seconds * 1e3,
                share(e.seconds),
                rate(e.flops),
                rate(e.bytes)
            );
        }
        out += &format!(
            "{:<22} {:<8} {:>6} {:>9.2} {:>6.1}\n",
            "elsewhere",
            "",
            "",
            self.elsewhere() * 1e3,
            share(self.elsewhere())
        );
        let [name, ms] = ["the step", &format!("{:.2}", self.seconds * 1e3)];
        out += &match &self.ceilings {
            None => format!("{name:<22} {:<8} {:>6} {ms:>9} {:>6.1}\n", "", "", 100.0),
            Some(best) => format!(
                "{:<22} {:<8} {:>6} {ms:>9} {:>6.1} {:>8.0} {:>6.0}\n",
                "the machine at best", "", "", 100.0, best.gflops, best.copy_gbs
            ),
        };
        out
    }

    fn json(&self) -> Value {
        let ops: Vec<Value> = self
            .ops
            .iter()
            .map(|(op, pass, e)| {
                json!({"op": op, "pass": format!("{pass:?}").to_lowercase(), "calls": e.calls, "ms": e.seconds * 1e3,
                       "gflops": e.flops / e.seconds / 1e9, "gbs": e.bytes / e.seconds / 1e9})
            })
            .collect();
        json!({"ops": ops, "step_ms": self.seconds * 1e3, "elsewhere_ms": self.elsewhere() * 1e3,
               "ceiling_gflops": self.ceilings.as_ref().map(|c| c.gflops),
               "ceiling_gbs": self.ceilings.as_ref().map(|c| c.copy_gbs)})
    }
}

fn ops(args: &BenchOpsArgs) -> Result<()> {
    let model = decoder(&args.shape)?;
    let mut shapes: Vec<[usize; 2]> = model.matrices().iter().skip(1).map(|m| m.shape).collect();
    shapes.sort_unstable();
    shapes.dedup();
    let ceilings = [bench::ceilings(DType::F32), bench::ceilings(DType::BF16)];
    let mut rows = Vec::new();
    for [out, cols] in shapes {
        for mut product in bench::products(args.rows, out, cols) {
            let seconds = bench::best_of(5, &mut product.run);
            rows.push((out, cols, product.name, seconds, product.flops / seconds / 1e9));
        }
    }
    if args.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(out, cols, op, s, rate)| json!({"op": op, "rows": args.rows, "out": out, "in": cols, "ms": s * 1e3, "gflops": rate}))
            .collect();
        return Ok(output::json(&json!({
            "isa": isa().name(), "threads": rayon::current_num_threads(), "ops": rows,
            "ceiling_gflops": {"f32": ceilings[0].gflops, "bf16": ceilings[1].gflops},
            "copy_gbs": ceilings[0].copy_gbs, "read_gbs": ceilings[0].read_gbs,
        }))?);
    }
    let mut text =
        format!("{:<14} {:>6} {:>6} {:>6} {:>10} {:>8}\n", "op", "rows", "out", "in", "ms", "GFLOP/s");
    for (out, cols, op, seconds, rate) in rows {
        text +=
            &format!("{op:<14} {:>6} {out:>6} {cols:>6} {:>10.3} {rate:>8.0}\n", args.rows, seconds * 1e3);
    }
    text += &format!(
        "\nthe machine at best: {:.0} GFLOP/s in f32, {:.0} in bf16 (registers only), {:.0} GB/s read, {:.0} GB/s copied; {} \
         threads, {}\n",
        ceilings[0].gflops,
        ceilings[1].gflops,
        ceilings[0].read_gbs,
        ceilings[0].copy_gbs,
        rayon::current_num_threads(),
        isa().name()
    );
    Ok(output::print(&text)?)
}
