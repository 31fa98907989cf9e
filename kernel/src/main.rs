//! Entry from the boot loader, and the boot order as one list.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "this is the kernel of Cleave: it runs on bare metal; start it with `cargo run` in the workspace"
    );
}

#[cfg(target_os = "none")]
mod entry {
    use bootloader_api::{
        BootInfo,
        config::{BootloaderConfig, Mapping},
        entry_point,
    };
    use kernel::{
        arch::{self, acpi, apic, cpu, gdt, idt, kstack, page_ops, paging, percpu, syscall_entry},
        boot::{
            args, config,
            early::{EarlyMemory, WINDOW_BASE, window_ptr},
            memory,
        },
        drivers::{clock, host, pic, uart},
        log,
        task::{sched, thread},
    };
    use mm::{CpuId, PhysAddr, VirtAddr};
    use spin::Mutex;

    /// Status of a machine that has too little memory.
    const STATUS_TOO_SMALL: u8 = 1;
    /// CPUs that run; the others stay parked.
    const RUNNING_CPUS: u32 = 1;

    static LOADER_CONFIG: BootloaderConfig = {
        let mut config = BootloaderConfig::new_default();
        config.mappings.physical_memory = Some(Mapping::FixedAddress(WINDOW_BASE));
        config.mappings.dynamic_range_start = Some(0xffff_9000_0000_0000);
        config.kernel_stack_size = 128 * 1024;
        config
    };
    entry_point!(start, config = &LOADER_CONFIG);

    /// What the first half of the boot order leaves to the second.
    static HANDOVER: Mutex<Option<(EarlyMemory, acpi::Topology)>> = Mutex::new(None);

    /// First half: on the loader's stack and page tables.
    fn start(info: &'static mut BootInfo) -> ! {
        pic::mask_all();
        uart::init();
        percpu::init(CpuId::new(0));
        gdt::init(percpu::this());
        idt::init();
        cpu::init();
        clock::init();
        let mut early = EarlyMemory::new(&info.memory_regions);
        let ramdisk = loader_ramdisk(info);
        let args = stop_if_too_small(args::read(&mut early, ramdisk).map_err(Into::into));
        if !args.host_listens() {
            uart::use_com1_for_everything();
        }
        stop_if_too_small(memory::check(&early));
        config::init(args.cmdline_words());
        log::info!(
            "cleave {} on {} with {}",
            env!("CARGO_PKG_VERSION"),
            cpu::brand(),
            cpu::features()
        );
        let topology = acpi::read(info.rsdp_addr.into_option().map(PhysAddr::new));
        let root = paging::build(&mut early, kstack::FIRST);
        let root = stop_if_too_small(root.map_err(memory::TooLittleMemory::from));
        *HANDOVER.lock() = Some((early, topology));
        let stack = kstack::FIRST;
        // SAFETY: `build` made the root and mapped the stack.
        unsafe { paging::switch_to(root, stack.bottom + stack.bytes, go_on) }
    }

    /// Second half: on the kernel's own stack and page tables.
    extern "C" fn go_on() -> ! {
        let handover = HANDOVER.lock().take();
        let (mut early, topology) = handover.expect("invariant: the first half left it");
        let scratch = stop_if_too_small(early.alloc_pages(1).map_err(Into::into));
        // SAFETY: the page was just taken for this.
        unsafe { page_ops::choose(config::config().page_ops(), window_ptr(scratch)) };
        let apic = apic::init(&topology, &mut early).map_err(memory::TooLittleMemory::from);
        stop_if_too_small(apic);
        stop_if_too_small(memory::init(
            &mut early,
            RUNNING_CPUS,
            config::config().nr_nodes(),
        ));
        log::info!(
            "clock: tsc {} kHz, local apic timer {} kHz",
            clock::tsc_khz(),
            apic::timer_khz()
        );
        if topology.nr_cpus > RUNNING_CPUS {
            log::info!(
                "smp: {RUNNING_CPUS} of {} CPUs runs, the others stay parked",
                topology.nr_cpus
            );
        }
        syscall_entry::init();
        sched::init();
        arch::interrupts_on();
        uart::enable_interrupts();
        let first = thread::spawn_kernel("init", run_first);
        drop(first.expect("invariant: the first thread's stack fits in fresh memory"));
        sched::idle()
    }

    #[cfg(not(feature = "ktest"))]
    fn run_first() {
        kernel::init::run()
    }

    /// Without names of trials, the kernel of the trials is an ordinary kernel: the host runs programs on it too.
    #[cfg(feature = "ktest")]
    fn run_first() {
        if args::args().tests().next().is_some() {
            kernel::ktest::run()
        }
        kernel::init::run()
    }

    /// Returns the value, or ends the machine with one line that says what is missing.
    fn stop_if_too_small<T>(result: Result<T, memory::TooLittleMemory>) -> T {
        result.unwrap_or_else(|error| {
            log::error!("memory: {error}");
            host::power_off(STATUS_TOO_SMALL)
        })
    }

    /// Returns the loader's ramdisk through the window, where it stays mapped; `None` if there is none.
    fn loader_ramdisk(info: &BootInfo) -> Option<&'static [u8]> {
        let start = VirtAddr::try_new(info.ramdisk_addr.into_option()?).ok()?;
        let first = paging::translate(start)?;
        let last = paging::translate(start + info.ramdisk_len.checked_sub(1)?)?;
        if last - first != info.ramdisk_len - 1 {
            log::warn!("boot: the loader's ramdisk is scattered over memory and was ignored");
            return None;
        }
        let bytes = mm::addr::to_usize(info.ramdisk_len);
        // SAFETY: the loader's own memory, which the kernel maps and never gives away.
        Some(unsafe { core::slice::from_raw_parts(window_ptr(first), bytes) })
    }
}
