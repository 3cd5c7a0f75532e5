import { Type1Host } from "../../../src/linux/type1/host.js";
import { MiB } from "../../../src/memory/address.js";
import { createArena } from "../../../src/memory/arena.js";
import type { UapiError } from "../../../src/uapi/errno.js";
import { openDescriptors } from "./descriptors.js";

/*
 * Maps more than this process may lock, and then what it may: run as another user than root, with the device's name. Tells
 * what happened, and what it had open before and after, as JSON.
 */

const before = openDescriptors();
const host = await Type1Host.open();
await host.openDevice(process.argv[2]);
const arena = createArena(1 * MiB);
const map = async (length: number) => {
  try {
    await host.container.mapDma({ iova: 0n, span: { arena, offset: 0, length }, readable: true, writeable: true });
    return "mapped";
  } catch (error) {
    const { code, syscall, remedy } = error as UapiError;
    return { code, syscall, remedy };
  }
};
const refused = await map(1 * MiB);
const fitting = await map(4096);
await host[Symbol.asyncDispose]();
console.log(JSON.stringify({ refused, fitting, before, after: openDescriptors() }));
