use loratune_engine::{DType, Device, profile};
use loratune_model::adapter::{AdapterSpec, Targets};
use loratune_model::bench::{StepBench, shape, spec};
use loratune_model::decoder::Dtypes;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dtype = if args[1] == "bf16" { DType::BF16 } else { DType::F32 };
    let dora = args.get(2).is_some_and(|a| a == "dora");
    let name = args.get(3).map_or("smollm2-135m", String::as_str);
    let model = spec(&shape(name).unwrap()).unwrap();
    let adapter = AdapterSpec {
        r: 8,
        alpha: 16.0,
        targets: Targets::AllLinear,
        use_dora: dora,
        ..AdapterSpec::default()
    };
    let t = Instant::now();
    let mut bench = StepBench::new(&model, Dtypes::both(dtype), &adapter, 4, 256, 1, Device::Cpu).unwrap();
    println!("built in {:.2} s", t.elapsed().as_secs_f64());
    bench.step().unwrap();
    let n = 4;
    let cpu = || {
        let s = std::fs::read_to_string("/proc/self/stat").unwrap();
        let f: Vec<f64> =
            s.rsplit(')').next().unwrap().split_whitespace().map(|x| x.parse().unwrap_or(0.0)).collect();
        (f[11] + f[12]) / 100.0
    };
    let before = cpu();
    let mut times: Vec<f64> = (0..n)
        .map(|_| {
            let t = Instant::now();
            bench.step().unwrap();
            t.elapsed().as_secs_f64()
        })
        .collect();
    println!("cpu {:.3} s a step over two cores", (cpu() - before) / n as f64 / 2.0);
    times.sort_by(f64::total_cmp);
    println!(
        "steps {times:.3?}: {:.0} tokens/s best, {:.0} median",
        bench.tokens() as f64 / times[0],
        bench.tokens() as f64 / times[n / 2]
    );
    profile::start();
    let t = Instant::now();
    bench.step().unwrap();
    let total = t.elapsed().as_secs_f64();
    let mut rows = profile::stop();
    rows.sort_by(|a, b| b.2.seconds.total_cmp(&a.2.seconds));
    let mut sum = 0.0;
    for (op, pass, e) in rows {
        sum += e.seconds;
        println!(
            "{op:<22} {pass:?} {:>5} calls {:>8.1} ms {:>7.0} GFLOP/s {:>6.1} GB/s",
            e.calls,
            e.seconds * 1e3,
            e.flops / e.seconds / 1e9,
            e.bytes / e.seconds / 1e9
        );
    }
    println!("elsewhere {:.1} ms of {:.1}", (total - sum) * 1e3, total * 1e3);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
}
