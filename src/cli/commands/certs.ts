import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { EXIT_CODES } from "../exit-codes.js";
import { wholeNumber } from "../input/options.js";
import { printResult, runCommand } from "../output.js";

interface CertsOptions {
  readonly host?: readonly string[];
  readonly days: number;
  readonly json?: boolean;
}

/** `dirtmap certs`: a set of certificates for trying TLS out. */
export function addCerts(program: Command): void {
  program
    .command("certs")
    .description("Makes a CA and a certificate for each side, for trying TLS out")
    .argument("[folder]", "where the files go; made if it is not there", DEFAULTS.certificateFolder)
    .option(
      "--host <name...>",
      `names and addresses of the destination (default: ${DEFAULTS.certificateHosts.join(" ")})`,
    )
    .option("--days <number>", "days until they expire", wholeNumber(1, 3650), DEFAULTS.certificateDays)
    .option("--json", "print the result as JSON")
    .addHelpText(
      "after",
      "\nThe source needs ca.pem, client.pem and client-key.pem; the destination ca.pem, server.pem and server-key.pem.\n" +
        "Keys are written readable for you alone. Files that are there already are not overwritten.\n\n" +
        "Examples:\n  dirtmap certs\n  dirtmap certs /tmp/certs --host dst.example.com 10.0.0.7 --days 7\n" +
        "  dirtmap receive --listen tls://0.0.0.0:7700 --tls-folder certs\n" +
        "  dirtmap migrate --to tls://dst.example.com:7700 --tls-folder certs",
    )
    .action((folder: string, { host, days, json = false }: CertsOptions) =>
      runCommand({ json }, async () => {
        const { makeCertificates, writeCertificates } = await import("../../certs/certs.js");
        const files = await writeCertificates(
          folder,
          await makeCertificates({ hosts: host ?? DEFAULTS.certificateHosts, days }),
        );
        printResult({ folder, files }, { json, text: (safe) => safe.files.join("\n") });
        return EXIT_CODES.done.code;
      }),
    );
}
