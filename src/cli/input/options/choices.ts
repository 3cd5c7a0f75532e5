/*
 * What only the command line lets an operator choose from. What scenarios have too is in ../scenario/choices.ts.
 */

export const HOSTS = ["emulated", "linux"] as const;
/** What a plan for this machine can be printed for. */
export const VMMS = ["qemu", "libvirt"] as const;
export const P2P = ["all", "none", "table"] as const;
