import { deciding } from "./shared/decide.js";

export const run = deciding("abort");
