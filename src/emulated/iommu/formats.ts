import type { IommuFormatName } from "../../host/description.js";
import { amdV1 } from "./amd-v1.js";
import { armS1 } from "./arm-s1.js";
import type { PageTableFormat } from "./format.js";
import { vtdSs } from "./vtd-ss.js";

/** The page-table formats by name. */
export const FORMATS: Readonly<Record<IommuFormatName, PageTableFormat>> = {
  "amd-v1": amdV1,
  "vtd-ss": vtdSs,
  "arm-s1": armS1,
};
