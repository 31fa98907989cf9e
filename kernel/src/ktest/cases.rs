//! Trials of the machine layer.

use alloc::{sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use mm::{AllocFlags, Nanos, Order, VirtAddr, addr::to_usize};

use super::Trial;
use crate::{
    arch::{apic, kstack, page_ops::PageOps, paging, user_copy},
    boot::{args, early},
    drivers::clock,
    heap,
    panic::{Crash, crash},
    platform::mm,
    task::{
        sched, thread,
        wait::{self, WaitQueue},
    },
};

crate::ktest::trials! {
    Trial::new("arch::kernel_image_is_writable_or_executable_never_both", image_is_w_xor_x),
    Trial::new("arch::window_is_not_executable", window_is_not_executable),
    Trial::new("arch::every_way_to_clear_and_copy_a_page_works", page_ops_work),
    Trial::new(
        "arch::clearing_and_copying_give_vector_registers_back",
        page_ops_give_vector_registers_back,
    ),
    Trial::new("arch::timer_interrupts_arrive", timer_interrupts_arrive),
    Trial::new("arch::user_copy_refuses_wild_pointers", user_copy_refuses_wild_pointers),
    Trial::new("arch::stack_overflow_is_reported", || crash(Crash::Stack)).panics(),
    Trial::new("arch::kernel_fault_is_reported", || crash(Crash::Fault)).panics(),
    Trial::new("clock::time_never_goes_back", time_never_goes_back),
    Trial::new("clock::a_sleep_is_as_long_as_asked", sleep_is_as_long_as_asked),
    Trial::new("fw_cfg::names_of_trials_arrive", names_of_trials_arrive),
    Trial::new("heap::grows_and_keeps_contents", heap_grows),
    Trial::new("task::many_threads_run_and_end", many_threads_run_and_end),
    Trial::new("task::a_switch_keeps_the_registers", switch_keeps_registers),
    Trial::new("task::a_wake_ends_a_wait", wake_ends_a_wait),
    Trial::new("task::a_wake_before_the_sleep_is_not_lost", early_wake_is_not_lost),
    Trial::new("task::a_deadline_ends_a_wait", deadline_ends_a_wait),
    Trial::new("task::waiting_with_preemption_off_panics", wait_with_preemption_off).panics(),
    Trial::new("task::stacks_are_given_back", stacks_are_given_back),
}

fn image_is_w_xor_x() {
    let mut pages = 0;
    paging::for_each_image_segment(&mut |start, end, writable, executable| {
        assert!(
            !(writable && executable),
            "a segment is linked writable and executable"
        );
        for page in (start & !0xfff..end).step_by(0x1000) {
            let Some((writes, executes)) = paging::rights(VirtAddr::new(page)) else {
                continue;
            };
            assert!(!(writes && executes), "{page:#x} is writable and executable");
            assert!(
                writable || !writes,
                "{page:#x} of a read-only segment is writable"
            );
            assert_eq!(executes, executable, "{page:#x} has the wrong execute right");
            pages += 1;
        }
    });
    assert!(pages > 10, "only {pages} pages were looked at");
}

fn window_is_not_executable() {
    let block = mm()
        .alloc_pages(Order::ZERO, AllocFlags::empty())
        .expect("one page");
    let address = VirtAddr::new(early::WINDOW_BASE + block.start().as_u64());
    assert_eq!(paging::rights(address), Some((true, false)));
    mm().free_pages(block, Order::ZERO);
}

fn page_ops_work() {
    let pages = [(); 2].map(|()| {
        mm().alloc_pages(Order::ZERO, AllocFlags::empty())
            .expect("one page")
    });
    let [a, b] = pages.map(|pfn| early::window_ptr(pfn.start()));
    for name in ["stosb", "stosq", "unrolled", "avx"] {
        let ops = PageOps::from_name(name).expect("a known way");
        if !ops.is_available() {
            continue;
        }
        // SAFETY: both pages are ours.
        unsafe { a.write_bytes(0x5a, mm::PAGE_SIZE) };
        // SAFETY: both pages are ours.
        unsafe { ops.copy(b, a) };
        // SAFETY: the page is ours.
        let copied = unsafe { core::slice::from_raw_parts(b, mm::PAGE_SIZE) };
        assert!(copied.iter().all(|byte| *byte == 0x5a), "{name} copies");
        // SAFETY: the page is ours, and the slice is not used any more.
        unsafe { ops.clear(b) };
        // SAFETY: the page is ours.
        let cleared = unsafe { core::slice::from_raw_parts(b, mm::PAGE_SIZE) };
        assert!(cleared.iter().all(|byte| *byte == 0), "{name} clears");
    }
    for pfn in pages {
        mm().free_pages(pfn, Order::ZERO);
    }
}

/// A page fault must not change a register of the program.
fn page_ops_give_vector_registers_back() {
    let ops = PageOps::from_name("avx").expect("a known way");
    assert!(ops.is_available(), "the machine of the trials has AVX");
    let pages = [(); 2].map(|()| {
        mm().alloc_pages(Order::ZERO, AllocFlags::empty())
            .expect("one page")
    });
    let [a, b] = pages.map(|pfn| early::window_ptr(pfn.start()));
    let before: [u64; 4] = core::array::from_fn(|i| 0x0123_4567_89ab_cdef << i);
    let mut after = [[0_u64; 4]; 2];
    // SAFETY: AVX is there; the register belongs to no program while this kernel thread runs.
    unsafe { core::arch::asm!("vmovdqu ymm0, [{}]", in(reg) &raw const before, options(nostack)) };
    // SAFETY: the page is ours.
    unsafe { ops.clear(a) };
    // SAFETY: there is room for the register.
    unsafe { core::arch::asm!("vmovdqu [{}], ymm0", in(reg) &raw mut after[0], options(nostack)) };
    // SAFETY: both pages are ours.
    unsafe { ops.copy(b, a) };
    // SAFETY: there is room for the register.
    unsafe { core::arch::asm!("vmovdqu [{}], ymm0", in(reg) &raw mut after[1], options(nostack)) };
    assert_eq!(after, [before; 2]);
    for pfn in pages {
        mm().free_pages(pfn, Order::ZERO);
    }
}

fn timer_interrupts_arrive() {
    let before = apic::ticks();
    wait::sleep_until(Nanos(clock::now().0 + 2_000_000));
    assert!(apic::ticks() > before, "no timer interrupt in 2 ms");
}

fn user_copy_refuses_wild_pointers() {
    // This kernel thread has no program, so nothing of the lower half is mapped.
    let mut bytes = [7; 16];
    for wild in [
        0,
        0x1000,
        mm::USER_END - 8,
        mm::USER_END,
        0xffff_8800_0000_0000,
        0xffff_ffff_8000_0000,
    ] {
        let wild = VirtAddr::new(wild);
        assert!(
            user_copy::copy_from_user(&mut bytes, wild).is_err(),
            "read at {wild:?}"
        );
        assert!(
            user_copy::copy_to_user(wild, &bytes).is_err(),
            "write at {wild:?}"
        );
        assert!(
            user_copy::strncpy_from_user(&mut bytes, wild).is_err(),
            "string at {wild:?}"
        );
    }
    assert_eq!(bytes, [7; 16]);
}

fn time_never_goes_back() {
    let mut last = clock::now();
    for _ in 0..10_000 {
        let now = clock::now();
        assert!(now >= last);
        last = now;
    }
    // Between 2020 and 2100: the date was read, and as what it is.
    let years = clock::wall_clock().0 / 1_000_000_000 / 31_556_952;
    assert!((50..130).contains(&years), "the year is {}", 1970 + years);
}

fn sleep_is_as_long_as_asked() {
    for nanos in [10_000, 1_000_000, 30_000_000] {
        let start = clock::now().0;
        wait::sleep_until(Nanos(start + nanos));
        let slept = clock::now().0 - start;
        assert!(slept >= nanos, "slept {slept} of {nanos} ns");
        assert!(
            slept < nanos + 2_000_000_000,
            "slept {slept} instead of {nanos} ns"
        );
    }
}

fn names_of_trials_arrive() {
    let mine = b"fw_cfg::names_of_trials_arrive";
    assert!(args::args().tests().any(|name| name == mine));
    assert!(args::args().host_listens());
}

fn heap_grows() {
    let before = heap::usage();
    let blocks: Vec<Vec<u64>> = (0..6).map(|n| vec![n; 1 << 17]).collect();
    assert!(
        heap::usage().mapped_bytes > before.mapped_bytes,
        "six MiB fitted into what was there"
    );
    for (n, block) in (0_u64..).zip(&blocks) {
        assert!(block.iter().all(|word| *word == n), "block {n} changed");
    }
    drop(blocks);
    assert_eq!(
        heap::usage().used_bytes,
        before.used_bytes,
        "what was freed came back"
    );
    let absurd = Vec::<u8>::new().try_reserve(1 << 40);
    assert!(absurd.is_err(), "a terabyte is refused, not promised");
}

fn many_threads_run_and_end() {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    COUNT.store(0, Ordering::Relaxed);
    let threads: Vec<_> = (0..100)
        .map(|_| {
            thread::spawn_kernel("count", || {
                sched::yield_now();
                COUNT.fetch_add(1, Ordering::Relaxed);
            })
            .expect("a thread")
        })
        .collect();
    threads.iter().for_each(|thread| thread.join());
    assert_eq!(COUNT.load(Ordering::Relaxed), 100);
    assert!(threads.iter().all(|thread| thread.has_exited()));
}

/// Adds numbers up in registers while it gives the CPU away again and again.
fn busy_sum(seed: u64) -> u64 {
    let mut words = [seed, seed ^ 1, seed ^ 2, seed ^ 3, seed ^ 4, seed ^ 5];
    for round in 0..200 {
        for (n, word) in (0..).zip(&mut words) {
            *word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n) ^ round;
        }
        sched::yield_now();
    }
    words.iter().fold(0, |sum, word| sum ^ word)
}

fn switch_keeps_registers() {
    let sums = Arc::new([const { AtomicU64::new(0) }; 4]);
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let sums = sums.clone();
            thread::spawn_kernel("sum", move || {
                sums[to_usize(n)].store(busy_sum(n), Ordering::Release);
            })
            .expect("a thread")
        })
        .collect();
    threads.iter().for_each(|thread| thread.join());
    for n in 0..4 {
        assert_eq!(
            sums[to_usize(n)].load(Ordering::Acquire),
            busy_sum(n),
            "thread {n} computed something else"
        );
    }
}

fn wake_ends_a_wait() {
    static QUEUE: WaitQueue = WaitQueue::new();
    static READY: AtomicBool = AtomicBool::new(false);
    READY.store(false, Ordering::Release);
    let sleeper = thread::spawn_kernel("sleeper", || {
        while !READY.load(Ordering::Acquire) {
            QUEUE.wait_while(None, &mut || !READY.load(Ordering::Acquire));
        }
    });
    let sleeper = sleeper.expect("a thread");
    wait::sleep_until(Nanos(clock::now().0 + 1_000_000));
    assert!(!sleeper.has_exited(), "it did not wait");
    READY.store(true, Ordering::Release);
    QUEUE.wake_all();
    sleeper.join();
}

fn early_wake_is_not_lost() {
    static QUEUE: WaitQueue = WaitQueue::new();
    // The wake comes between queueing and sleeping: the wait must return without a deadline's help.
    let start = clock::now();
    QUEUE.wait_while(Some(Nanos(start.0 + 20_000_000_000)), &mut || {
        QUEUE.wake_all();
        true
    });
    assert!(
        clock::now().0 - start.0 < 10_000_000_000,
        "only the deadline ended the wait"
    );
}

fn deadline_ends_a_wait() {
    static QUEUE: WaitQueue = WaitQueue::new();
    let deadline = Nanos(clock::now().0 + 3_000_000);
    while clock::now() < deadline {
        QUEUE.wait_while(Some(deadline), &mut || true);
    }
}

fn wait_with_preemption_off() {
    use mm::Platform;

    let _guard = mm().platform().preempt_off();
    wait::sleep_until(Nanos(clock::now().0 + 1_000_000));
}

fn stacks_are_given_back() {
    // The first round may need a table that stays.
    drop(kstack::KernelStack::new().expect("a stack"));
    mm().drain_all_magazines();
    let free = mm().nr_free_pages();
    for _ in 0..50 {
        let stack = kstack::KernelStack::new().expect("a stack");
        assert!(kstack::is_guard(stack.top() - kstack::STACK_BYTES - 1));
        assert!(paging::translate(VirtAddr::new(stack.top() - kstack::STACK_BYTES - 1)).is_none());
        assert!(paging::translate(VirtAddr::new(stack.top() - 1)).is_some());
    }
    mm().drain_all_magazines();
    assert_eq!(mm().nr_free_pages(), free);
}
