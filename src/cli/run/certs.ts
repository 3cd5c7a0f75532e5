import { makeCertificates, writeCertificates } from "../../certs/certs.js";
import { DEFAULTS } from "../../defaults.js";
import type { CertsInput } from "../commands/certs.js";
import { printResult } from "../output.js";
import type { Run } from "../run-command.js";

export const run: Run<CertsInput> = async ({ folder, name, days, json = false }) => {
  const made = await makeCertificates({ hosts: name ?? DEFAULTS.certificateHosts, days });
  const files = await writeCertificates(folder, made);
  printResult({ folder, files }, { json, text: (safe) => safe.files.join("\n") });
};
