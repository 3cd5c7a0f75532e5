import { expect, test } from "vitest";
import { complaintsIn } from "./kernel-log.js";

test.each([
  "[   12.345678] WARNING: drivers/iommu/iommufd/hw_pagetable.c:12 at iommufd_hwpt_attach+0x1/0x2, CPU#0: node/77",
  "[   12.345678] WARNING: CPU: 1 PID: 77 at drivers/vfio/vfio_main.c:12 vfio_df_open+0x1/0x2",
  "[    1.000000] WARNING: possible circular locking dependency detected",
  "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008",
  "[    1.000000] BUG: KASAN: slab-use-after-free in iopt_area_fill_domains+0x1/0x2",
  "[    1.000000] kernel BUG at mm/slub.c:12!",
  "[    1.000000] Oops: 0002 [#1] SMP",
  "[    1.000000] Oops: general protection fault, maybe for address 0x1: 0000 [#1] SMP",
  "[    1.000000][   T77] Oops: 0002 [#1] SMP",
  "[    1.000000] UBSAN: array-index-out-of-bounds in drivers/iommu/io-pgtable.c:12:3",
  "[  243.000000] INFO: task node:77 blocked for more than 120 seconds.",
  "[    2.532236] Kernel panic - not syncing: No working init found.",
  "Kernel panic - not syncing: no time yet",
])("a complaint is found: %s", (line) => {
  expect(complaintsIn(`[    0.1] Linux version 7.2.13\r\n${line}\r\n[    9.1] reboot: Power down\r\n`)).toEqual([line]);
});

test.each([
  "[    0.032994] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
  '[    0.740000] PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
  "[    0.030294] Speculative Store Bypass: Vulnerable",
  "[    3.100000] FAULT_INJECTION: forcing a failure.",
  "[    3.100000] Call Trace:",
  "[    3.100000] vfio-pci 0000:00:05.0: Oops is no word of the kernel's here",
  "",
])("a harmless line is let through: %s", (line) => {
  expect(complaintsIn(line)).toEqual([]);
});
