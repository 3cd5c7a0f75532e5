import { readFileSync } from "node:fs";
import { z } from "zod";

const manifest = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");

/** Name and version of this software, as the two sides of a migration tell each other. */
export const SOFTWARE = `dirtmap ${z.object({ version: z.string() }).parse(JSON.parse(manifest)).version}`;
