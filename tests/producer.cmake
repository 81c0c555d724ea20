# SPDX-License-Identifier: MIT
if(TARGET pgpt_cli)
  foreach(part connection merge options load order)
    pgpt_unit_test(client_${part} pgpt_cli)
  endforeach()
endif()
