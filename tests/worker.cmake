# SPDX-License-Identifier: MIT
if(TARGET pgpt_worker)
  foreach(module ledger ledger_metadata duplicates)
    pgpt_unit_test(${module} pgpt_worker)
  endforeach()
endif()
