import type { Policy } from "../../tracking/choice.js";
import { libvirtText } from "../../vmm-options/libvirt-xml.js";
import { qemuText } from "../../vmm-options/qemu-command-line.js";
import type { HostPlan } from "../sites/linux/plan.js";
import { planText } from "./plan-text.js";

const NOTHING =
  "no device of this machine is on a VFIO driver: name one with --device to plan what it would get (see `dirtmap probe --host linux`)";

function guessed(why: string): string {
  return `a guess from sysfs, since it could not be asked: ${why}`;
}

/** What `dirtmap plan --host linux` prints. Ends without a newline. */
export function hostPlanText({ devices, leftOut, remarks: general, qemu, libvirt }: HostPlan, policy: Policy): string {
  if (devices.length === 0 && leftOut.length === 0) return NOTHING;
  const remarks = new Map(
    devices.flatMap(({ choice, why }) => (why === null ? [] : [[choice.device, guessed(why)] as const])),
  );
  const choices = devices.map(({ choice }) => choice);
  return [
    ...(devices.length === 0 ? [] : [planText(choices, policy, remarks)]),
    ...(leftOut.length === 0 ? [] : [leftOut.map(({ id, why }) => `${id}: ${why}`).join("\n")]),
    ...(general.length === 0 ? [] : [general.join("\n")]),
    ...(qemu.arguments.length === 0 ? [] : [`QEMU\n\n${qemuText(qemu)}`, `libvirt\n\n${libvirtText(libvirt)}`]),
  ].join("\n\n");
}

/** What has to be known of a plan whose options alone are printed: a line for each guess, and each device left out. */
export function hostPlanWarnings({ devices, leftOut, remarks }: HostPlan): string[] {
  if (devices.length === 0 && leftOut.length === 0) return [NOTHING];
  return [
    ...devices.flatMap(({ choice, why }) => (why === null ? [] : [`${choice.device}: ${guessed(why)}`])),
    ...leftOut.map(({ id, why }) => `${id}: ${why}`),
    ...remarks,
  ];
}
