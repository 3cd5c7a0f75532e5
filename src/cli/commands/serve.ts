import type { Command } from "commander";
import { DEFAULTS } from "../../defaults.js";
import { exitCodesHelp } from "../exit-codes.js";
import { addStoreOption, type StoreOption } from "../input/options/places.js";
import { runBy } from "../run-command.js";

export interface ServeInput extends StoreOption {
  readonly listen: string;
  readonly tokenFile?: string;
  readonly json?: boolean;
}

const NOTES = `
Examples:
  dirtmap serve
  dirtmap serve --listen 127.0.0.1:0 --json
  (umask 077; openssl rand -hex 32 >token) && dirtmap serve --listen 0.0.0.0:7780 --token-file token

It shows this user's runs in progress, and the runs and benchmarks in the store. /metrics is for Prometheus; /api is JSON
and describes itself. Without a token it answers this machine only. It speaks plain HTTP: to show it to others, put it
behind a proxy that speaks TLS, or use \`ssh -L 7780:127.0.0.1:7780\`. Ctrl-C or SIGTERM ends it.
`;

/** `dirtmap serve`: the dashboard. */
export function declareServe(program: Command): Command {
  const command = addStoreOption(
    program
      .command("serve")
      .description("serve a dashboard of runs in progress and past runs, an API, and metrics for Prometheus")
      .option("-l, --listen <address>", "listen on HOST:PORT; port 0: the system chooses", DEFAULTS.dashboard),
  )
    .option("--token-file <file>", "require the token in this file of every client")
    .option("--json", "print the address as JSON")
    .addHelpText("after", `${NOTES}\n${exitCodesHelp()}`);
  return runBy<ServeInput>(command, () => import("../run/serve.js"));
}
