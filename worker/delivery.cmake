# SPDX-License-Identifier: MIT
target_sources(pgpt_worker PRIVATE
  admission.c assignment.c control.c dead_letter.c duplicates.c engines.c fault.c intake.c job.c job_id.c kafka_client.c
  lag.c ledger.c ledger_metadata.c partitions.c offsets_call.c settle.c settle_records.c suspects.c takeover.c topics.c)
