import type { Command } from "commander";

/** Where this side's certificate, its key and the CA are. */
export interface TlsOptions {
  readonly tlsFolder?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly insecure?: boolean;
}

/** Adds the options of {@link TlsOptions}. */
export function addTlsOptions(command: Command): Command {
  return command
    .option("--tls-folder <folder>", "take certificates from a folder that `dirtmap certs` made")
    .option("--tls-cert <file>", "take this side's certificate from a file (PEM)")
    .option("--tls-key <file>", "take this side's key from a file (PEM)")
    .option("--tls-ca <file>", "trust only certificates of this CA on the other side (PEM)")
    .option("--insecure", "allow tcp:// to and from other machines: anyone on the way can read the guest's memory");
}
