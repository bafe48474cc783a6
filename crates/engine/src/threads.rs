//! Threads that wait for the next op without falling asleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Device;

/// Looks for work in vain before the processor is offered to others.
const LOOKS: u32 = 2000;

struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Does a piece of work of many short ops, a step or a token, with all threads of the pool awake.
///
/// Between two ops the other threads have nothing to do for some microseconds and fall asleep; to wake them takes longer than
/// many an op. Here they keep looking for work until the whole is done. What runs on the calling thread, which must be one of
/// the pool (otherwise nothing changes), is free to wait for the others as ever. Work of another device needs nothing of this.
pub fn awake<T>(device: Device, work: impl FnOnce() -> T) -> T {
    let own = rayon::current_thread_index().filter(|_| device == Device::Cpu);
    let Some(own) = own else { return work() };
    let done = Done(Arc::default());
    if rayon::current_num_threads() > 1 {
        let done = done.0.clone();
        rayon::spawn_broadcast(move |thread| {
            let mut looks = 0;
            while thread.index() != own && !done.load(Ordering::Acquire) {
                match rayon::yield_now() {
                    Some(rayon::Yield::Executed) => looks = 0,
                    _ if looks < LOOKS => {
                        looks += 1;
                        std::hint::spin_loop();
                    }
                    _ => {
                        looks = 0;
                        std::thread::yield_now();
                    }
                }
            }
        });
    }
    work()
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn work_gets_done_in_any_pool_nested_or_not() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sum = || (0..1000u32).into_par_iter().with_max_len(1).map(u64::from).sum::<u64>();
            let all =
                pool.install(|| awake(Device::Cpu, || (0..50).map(|_| awake(Device::Cpu, sum)).sum::<u64>()));
            assert_eq!(all, 50 * 499_500);
            // Threads are free again.
            assert_eq!(pool.install(sum), 499_500);
        }
        assert_eq!(awake(Device::Cpu, || 7), 7);
    }
}
