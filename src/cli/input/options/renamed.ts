import { type Command, InvalidArgumentError, Option } from "commander";

/*
 * Options that had another name: the old one is refused, and says the new one.
 */

/** By command: its old names, as they are declared, with the new name of each. */
export const RENAMED: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  predict: { "--observe <duration>": "--duration", "--run <file...>": "--link-from" },
  receive: { "--files <folder>": "--shared-folder" },
  certs: { "--host <name...>": "--name" },
  "bench designs": { "--only <names>": "--plots" },
  device: { "-o <name=value...>": "--option" },
};

/** Adds the old names of a command's options. @param path its words: `bench designs` */
export function addRenamed(command: Command, path: string): void {
  for (const [flags, name] of Object.entries(RENAMED[path] ?? {})) {
    const refuse = () => {
      throw new InvalidArgumentError(`the option is now called ${name}`);
    };
    command.addOption(new Option(flags).argParser(refuse).hideHelp());
  }
}
