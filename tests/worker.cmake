# SPDX-License-Identifier: MIT
if(TARGET pgpt_worker)
  foreach(module ledger ledger_metadata duplicates assignment delivery_model settle takeover scheduler log metrics health dead_letter admission control config recorder_batch)
    pgpt_unit_test(${module} pgpt_worker)
  endforeach()
endif()
