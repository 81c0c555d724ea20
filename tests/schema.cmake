# SPDX-License-Identifier: MIT
if(TARGET pgpt_schema)
  pgpt_unit_test(codec pgpt_schema)
endif()
