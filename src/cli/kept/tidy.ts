import { defaultJournalDirectory } from "../../migration/journal-directory.js";
import { pruneJournals } from "../../migration/journals.js";
import { removeDeadFeeds } from "../../observe/feed/follow.js";
import { removeAbandonedFolders } from "../../sys/temporary-folder.js";

/**
 * Removes what processes left behind that have ended: journals that have been over for long, sockets, live feeds, temporary
 * folders. Nothing that a living process has, or that may need a decision. What can't be removed stays, without a word.
 */
export async function tidyUp(journal?: string): Promise<void> {
  const jobs = [() => pruneJournals(journal ?? defaultJournalDirectory()), removeDeadFeeds, removeAbandonedFolders];
  for (const job of jobs) {
    try {
      await job();
    } catch {
      // Another user's, perhaps: the command itself says what is wrong with what it needs.
    }
  }
}
