//! The time stamp counter.

/// Reads taken to find out what one costs.
const READS: usize = 32;

/// A counter whose own cost is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    cost: u64,
}

fn now() -> u64 {
    // SAFETY: reads a counter that ring 3 may read.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl Clock {
    /// Measures what measuring nothing costs.
    pub(crate) fn calibrated() -> Self {
        let free = Self { cost: 0 };
        let cost = (0..READS).map(|_| free.time(|| ())).min();
        Self {
            cost: cost.unwrap_or(0),
        }
    }

    /// Returns the steps that `work` takes.
    pub(crate) fn time<R>(self, work: impl FnOnce() -> R) -> u64 {
        let start = now();
        let result = work();
        let end = now();
        std::hint::black_box(result);
        (end - start).saturating_sub(self.cost)
    }
}
