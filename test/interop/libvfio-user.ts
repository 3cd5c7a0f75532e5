import { existsSync } from "node:fs";
import { join } from "node:path";
import { MissingError } from "../../tools/vm/missing.js";

const GETTING_IT = "run scripts/libvfio-user.sh FOLDER, and set DIRTMAP_LIBVFIO_USER to that folder";

/** libvfio-user, built by scripts/libvfio-user.sh. */
export interface LibvfioUser {
  /** Its folder of headers. */
  readonly include: string;
  /** The folder that libvfio-user.so is in. */
  readonly library: string;
  /** The folder of its sample programs. */
  readonly samples: string;
}

/** The libvfio-user that DIRTMAP_LIBVFIO_USER names. @throws MissingError where there is none, saying how to get it */
export function findLibvfioUser(): LibvfioUser {
  const folder = process.env.DIRTMAP_LIBVFIO_USER;
  if (!folder) throw new MissingError("no libvfio-user", GETTING_IT);
  const found = {
    include: join(folder, "library/src/include"),
    library: join(folder, "library/build/lib"),
    samples: join(folder, "samples/build/samples"),
  };
  for (const path of [join(found.include, "libvfio-user.h"), join(found.library, "libvfio-user.so"), found.samples]) {
    if (!existsSync(path)) throw new MissingError(`DIRTMAP_LIBVFIO_USER: there is no ${path}`, GETTING_IT);
  }
  return found;
}
