import { ROOTS } from "../../../src/linux/roots.js";
import { findDevices } from "../../../src/linux/sysfs/find.js";
import { Type1Devices } from "../../../src/linux/type1/devices.js";
import { MiB } from "../../../src/memory/address.js";
import { createArena } from "../../../src/memory/arena.js";
import type { UapiError } from "../../../src/uapi/errno.js";
import { openDescriptors } from "./descriptors.js";

/*
 * Maps more than this process may lock, and then what it may: run as another user than root, with the device's name. Tells
 * what happened, and what it had open before and after, as JSON.
 */

const device = findDevices(ROOTS).find(({ id }) => id === process.argv[2]);
if (device === undefined) throw new Error(`no ${process.argv[2]} in sysfs`);
const before = openDescriptors();
const opened = await Type1Devices.open([device]);
const arena = createArena(1 * MiB);
const map = async (length: number) => {
  try {
    await opened.container.mapDma({ iova: 0n, span: { arena, offset: 0, length }, readable: true, writeable: true });
    return "mapped";
  } catch (error) {
    const { code, syscall, remedy } = error as UapiError;
    return { code, syscall, remedy };
  }
};
const refused = await map(1 * MiB);
const fitting = await map(4096);
await opened[Symbol.asyncDispose]();
console.log(JSON.stringify({ refused, fitting, before, after: openDescriptors() }));
