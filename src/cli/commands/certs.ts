import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { orElse, wholeNumber } from "../input/options/values.js";
import { runBy } from "../run-command.js";

export interface CertsInput {
  readonly folder: string;
  readonly name?: readonly string[];
  readonly days: number;
  readonly json?: boolean;
}

const NOTES = `
The source needs ca.pem, client.pem and client-key.pem; the destination ca.pem, server.pem and server-key.pem.
Only you can read the keys. Existing files are not overwritten.

Examples:
  dirtmap certs
  dirtmap certs /tmp/certs --name dst.example.com 10.0.0.7 --days 7
  dirtmap receive --listen tls://0.0.0.0:7700 --tls-folder certs
  dirtmap migrate --to tls://dst.example.com:7700 --tls-folder certs`;

/** `dirtmap certs`: a set of certificates for trying TLS out. */
export function declareCerts(program: Command): Command {
  const command = program
    .command("certs")
    .description("make a CA, and a certificate for each side, for trying TLS out")
    .argument("[folder]", "write the files here; the folder is made if need be", DEFAULTS.certificateFolder)
    .option(
      "--name <name...>",
      `issue the destination's certificate for these names and addresses${orElse(DEFAULTS.certificateHosts.join(" "))}`,
    )
    .option("--days <number>", "let them expire after this many days", wholeNumber(1, 3650), DEFAULTS.certificateDays)
    .option("--json", "print the result as JSON")
    .addHelpText("after", NOTES);
  return runBy<CertsInput>(command, () => import("../run/certs.js"));
}
