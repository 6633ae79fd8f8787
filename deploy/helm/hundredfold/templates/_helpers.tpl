{{- define "hundredfold.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains "hundredfold" .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-hundredfold" .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "hundredfold.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "hundredfold.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "hundredfold.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "hundredfold.clusterSecret" -}}
{{ .Values.cluster.existingSecret | default (printf "%s-cluster" (include "hundredfold.fullname" .)) }}
{{- end }}

{{- /* What all pods of the release have in common: gossip is among all of them. */}}
{{- define "hundredfold.selector" -}}
app.kubernetes.io/name: hundredfold
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "hundredfold.labels" -}}
{{ include "hundredfold.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "hundredfold.replicas" -}}
{{- /* Of a zone; .root, .zone. 0 is a number, too. */ -}}
{{- if hasKey .zone "replicas" -}}{{ .zone.replicas }}{{- else -}}{{ .root.Values.ingester.replicas }}{{- end -}}
{{- end }}

{{- /*
The configuration file. What the chart decides is fixed here, so that values cannot
contradict the manifests.
*/}}
{{- define "hundredfold.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- range list "data_dir" "http" "auth" "grpc" "cluster" -}}
{{- if hasKey $config . -}}
{{- fail (printf "config.%s: the chart decides it; see auth, cluster and ingester in values.yaml" .) -}}
{{- end -}}
{{- end -}}
{{- $http := dict "listen_address" (ternary "[::]:9009" "0.0.0.0:9009" .Values.cluster.ipv6) -}}
{{- if .Values.auth.webConfigSecret -}}
{{- $_ := set $http "web_config_file" "/etc/hundredfold/web/web.yml" -}}
{{- end -}}
{{- $_ := set $config "http" $http -}}
{{- $_ := set $config "auth" (dict "mode" .Values.auth.mode) -}}
{{- $name := .Values.cluster.name | default (printf "%s.%s" .Release.Namespace (include "hundredfold.fullname" .)) -}}
{{- $_ := set $config "cluster" (dict
  "enabled" true
  "name" ($name | trunc 64)
  "replication_factor" (int .Values.cluster.replicationFactor)
  "secret_file" "/etc/hundredfold/cluster/secret"
  "gossip" (dict "join" (list (printf "%s-peers:7946" (include "hundredfold.fullname" .))))) -}}
{{ toYaml $config }}
{{- end }}

{{- /* Faults of values that no schema can see. */}}
{{- define "hundredfold.validate" -}}
{{- $bucket := .Values.config.bucket | default dict -}}
{{- if ne ($bucket.type | default "") "s3" -}}
{{- fail "config.bucket.type: a cluster shares a bucket in an object store, so it is s3" -}}
{{- end -}}
{{- $s3 := $bucket.s3 | default dict -}}
{{- if or (not $s3.endpoint) (not $s3.bucket) -}}
{{- fail "config.bucket.s3: set endpoint and bucket, the object store in which the blocks lie" -}}
{{- end -}}
{{- if or $s3.access_key $s3.secret_key -}}
{{- fail "config.bucket.s3: a ConfigMap is no place for keys; put them into a Secret and name it in bucketCredentials.existingSecret" -}}
{{- end -}}
{{- if and (eq .Values.auth.mode "required") (not .Values.auth.webConfigSecret) -}}
{{- fail "auth: name a Secret with web.yml in auth.webConfigSecret, or leave the HTTP API open to whoever reaches the pods with auth.mode=none" -}}
{{- end -}}
{{- if and .Values.auth.webConfigSecret (not .Values.auth.credentialsSecret) -}}
{{- fail "auth.credentialsSecret: name a Secret with username and password, for probes, restarts and drains" -}}
{{- end -}}
{{- $names := list -}}
{{- $members := 0 -}}
{{- range .Values.ingester.zones -}}
{{- if has .name $names -}}{{- fail (printf "ingester.zones: %s stands there twice" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- $members = add $members (include "hundredfold.replicas" (dict "root" $ "zone" .) | int) -}}
{{- end -}}
{{- if lt (int $members) (int .Values.cluster.replicationFactor) -}}
{{- fail (printf "ingester: %d of them cannot hold %d replicas of each series" (int $members) (int .Values.cluster.replicationFactor)) -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host: name the host" -}}
{{- end -}}
{{- end }}

{{- define "hundredfold.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hundredfold.securityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{- /* Credentials for calls of our own API, and the URL they go into; .root, .host. */}}
{{- define "hundredfold.credentials" -}}
{{- if .root.Values.auth.credentialsSecret }}
- name: HUNDREDFOLD_USER
  valueFrom: {secretKeyRef: {name: {{ .root.Values.auth.credentialsSecret }}, key: username}}
- name: HUNDREDFOLD_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .root.Values.auth.credentialsSecret }}, key: password}}
{{- end }}
- name: HUNDREDFOLD_URL
  value: http://{{ if .root.Values.auth.credentialsSecret }}$(HUNDREDFOLD_USER):$(HUNDREDFOLD_PASSWORD)@{{ end }}{{ .host }}
{{- end }}

{{- define "hundredfold.probes" -}}
{{- /* A process that is not ready may be replaying its log: only one that is dead is
restarted. With passwords the kubelet cannot ask, so that the program asks itself. */ -}}
readinessProbe:
  {{- if .Values.auth.webConfigSecret }}
  exec: {command: [/usr/local/bin/hundredfold, rollout, --ready]}
  {{- else }}
  httpGet: {path: /ready, port: http}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  {{- if .Values.auth.webConfigSecret }}
  tcpSocket: {port: http}
  {{- else }}
  httpGet: {path: /-/healthy, port: http}
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- /*
The pod template of a role: .root, .role, .values (of the role); .zone and .zoneValues of
an ingester; .affinity; .data is the volume "data", unless a claim of that name is made.
*/}}
{{- define "hundredfold.pod" -}}
{{- $root := .root -}}
{{- $ip := ternary "[$(POD_IP)]" "$(POD_IP)" $root.Values.cluster.ipv6 -}}
metadata:
  labels:
    {{- include "hundredfold.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .role }}
    {{- with .zone }}
    hundredfold-zone: {{ . }}
    {{- end }}
  annotations:
    checksum/config: {{ include "hundredfold.config" $root | sha256sum }}
    {{- with .values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "hundredfold.serviceAccountName" $root }}
  automountServiceAccountToken: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with merge (dict) ((.zoneValues | default dict).nodeSelector | default dict) .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .affinity }}
  affinity:
    {{- . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "hundredfold.podSecurityContext" $root | nindent 4 }}
  containers:
    - name: hundredfold
      image: {{ include "hundredfold.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - --role={{ .role }}
        - --config.file=/etc/hundredfold/config/hundredfold.yml
        - --data.dir=/var/lib/hundredfold
        - --instance-id=$(POD_NAME)
        {{- with .zone }}
        - --zone={{ . }}
        {{- end }}
        # What is listened on is what the others are told.
        - --grpc.listen-address={{ $ip }}:9095
        - --gossip.listen-address={{ $ip }}:7946
      env:
        - name: POD_NAME
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        - name: POD_IP
          valueFrom: {fieldRef: {fieldPath: status.podIP}}
        {{- include "hundredfold.credentials" (dict "root" $root "host" (ternary "[::1]:9009" "127.0.0.1:9009" $root.Values.cluster.ipv6)) | trim | nindent 8 }}
      {{- with $root.Values.bucketCredentials.existingSecret }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      ports:
        - {name: http, containerPort: 9009}
        - {name: grpc, containerPort: 9095}
        - {name: gossip-tcp, containerPort: 7946}
        - {name: gossip-udp, containerPort: 7946, protocol: UDP}
      lifecycle:
        preStop:
          {{- if eq .role "ingester" }}
          # RESTARTING: it keeps its slots and gets no more writes.
          exec: {command: [/usr/local/bin/hundredfold, rollout, --announce]}
          {{- else }}
          # Until load balancers have heard that the pod goes.
          sleep: {seconds: 5}
          {{- end }}
      {{- include "hundredfold.probes" $root | nindent 6 }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      securityContext:
        {{- include "hundredfold.securityContext" $root | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/hundredfold}
        - {name: config, mountPath: /etc/hundredfold/config, readOnly: true}
        - {name: cluster, mountPath: /etc/hundredfold/cluster, readOnly: true}
        {{- if $root.Values.auth.webConfigSecret }}
        - {name: web, mountPath: /etc/hundredfold/web, readOnly: true}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "hundredfold.fullname" $root }}}
    - name: cluster
      secret: {secretName: {{ include "hundredfold.clusterSecret" $root }}}
    {{- with $root.Values.auth.webConfigSecret }}
    - name: web
      secret: {secretName: {{ . }}}
    {{- end }}
    {{- with .data }}
    - name: data
      {{- . | nindent 6 }}
    {{- end }}
{{- end }}

{{- /* A claim for a volume; .size, .storageClass. */}}
{{- define "hundredfold.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end }}

{{- /* Spreads the pods of a role that has no zones; .root, .role. */}}
{{- define "hundredfold.spread" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    {{- range $weight, $key := dict "100" "kubernetes.io/hostname" "50" "topology.kubernetes.io/zone" }}
    - weight: {{ $weight }}
      podAffinityTerm:
        topologyKey: {{ $key }}
        labelSelector:
          matchLabels:
            {{- include "hundredfold.selector" $.root | nindent 12 }}
            app.kubernetes.io/component: {{ $.role }}
    {{- end }}
{{- end }}
