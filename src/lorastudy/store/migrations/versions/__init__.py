"""One file per revision, never edited once released; `schema.HEAD_REVISION` names the newest."""
