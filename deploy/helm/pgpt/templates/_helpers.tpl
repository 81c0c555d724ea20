{{- /* SPDX-License-Identifier: MIT */ -}}
{{- define "pgpt.labels" -}}
app.kubernetes.io/name: pgpt-worker
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "pgpt.selector" -}}
app.kubernetes.io/name: pgpt-worker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "pgpt.brokers" -}}
{{ required "brokers is empty: set it to the Kafka bootstrap servers, host:port,..." .Values.brokers }}
{{- end }}
{{- define "pgpt.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}
